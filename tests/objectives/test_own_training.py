"""A training by the user's function: what it is given, how it is validated, kept and resumed, and what it must not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acuity.objectives.device.device import open_device
from acuity.objectives.errors import InputError
from acuity.objectives.statistics.metrics import auc
from acuity.objectives.training.interface import Diverged, Hyperparameters, Interrupted, LabelledImages, Outcome
from acuity.objectives.training.own_function import OwnFunctionError
from acuity.objectives.training.own_training_check import check_training
from acuity.objectives.training.prediction import score_images
from acuity.objectives.training.train import train
from support.own_functions import Write, own_package
from support.standin_gpu import standin_gpu
from support.threads import one_thread

BASE = Hyperparameters(
    "test_resnet", resolution=32, batch_size=16, learning_rate=3e-2, epochs=4, train="mypackage.training:train"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*(srun|does not have many workers|LeafSpec)")  # Lightning's advice


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module of mypackage, which has those of docs/extending.md."""
    with own_package(tmp_path) as write_module:
        yield write_module


def patches(images: int = 240) -> LabelledImages:
    """Noise; an image with the finding has a bright patch. Half of the images are for training."""
    generator = np.random.default_rng(0)
    targets = (generator.random(images) < 0.4).astype(np.float32)
    pixels = generator.integers(0, 150, (images, 32, 32)).astype(np.uint8)
    for row in np.flatnonzero(targets):
        top, left = generator.integers(4, 20, 2)
        pixels[row, top : top + 8, left : left + 8] += 105
    rows = np.arange(images)
    return LabelledImages(pixels, targets, rows, training=rows[: images // 2], validation=rows[images // 2 :])


def run(hyperparameters: Hyperparameters = BASE, **options: Any) -> Outcome:
    options = {"report": lambda *_: False, "seed": 1} | options
    return train(hyperparameters, patches(), device=torch.device("cpu"), **options)


MODULES = ("training", "lightning_training")


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize("module", MODULES)
def test_the_pages_function_learns_and_its_kept_network_has_the_reported_scores(module: str) -> None:
    settings = replace(BASE, train=f"mypackage.{module}:train", learning_rate=3e-2 if module == "training" else 1e-2)
    reports: list[float] = []
    saved: list[bytes] = []
    outcome = run(
        settings,
        report=lambda epoch, area: reports.append(area) or epoch > 99,
        save_checkpoint=lambda data: saved.append(bytes(data)),
    )
    data = patches()
    assert len(reports) == outcome.epochs == 4
    assert reports[-1] == outcome.auc == auc(data.targets[data.validation], outcome.scores) > 0.9
    assert outcome.images_per_second > 0
    kept = score_images(saved[-1], settings, data.images, data.validation, device=torch.device("cpu"))
    assert np.array_equal(kept, outcome.scores)


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_training_resumes_bit_for_bit_from_the_network_and_the_functions_state(
    module: str, precision: str
) -> None:
    settings = replace(BASE, train=f"mypackage.{module}:train", precision=precision)
    whole = run(settings)
    saved: list[bytes] = []
    finished: list[int] = []
    steps = iter(range(10**9))
    with pytest.raises(Interrupted):
        run(
            settings,
            report=lambda epoch, _: bool(finished.append(epoch)),
            should_stop=lambda: finished == [1, 2] and next(steps) >= 3,
            save_checkpoint=lambda data: saved.append(bytes(data)),
        )
    assert finished == [1, 2]
    resumed = run(settings, load_checkpoint=lambda: saved[-1])
    assert resumed.resumed_epochs == 2
    assert np.array_equal(resumed.scores, whole.scores)


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize("module", MODULES)
def test_training_ends_where_the_report_says_so(module: str) -> None:
    outcome = run(replace(BASE, train=f"mypackage.{module}:train"), report=lambda epoch, _: epoch == 2)
    assert outcome.stopped
    assert outcome.epochs == 2


def test_checkpoint_of_the_last_epoch_is_scored_without_a_call(write: Write) -> None:
    saved: list[bytes] = []
    whole = run(save_checkpoint=lambda data: saved.append(bytes(data)))
    write("training.py", "def train(network, task):\n    raise AssertionError\n")
    assert np.array_equal(run(load_checkpoint=lambda: saved[-1]).scores, whole.scores)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("settings", [BASE, replace(BASE, network_input=48, precision="bf16")])
@pytest.mark.usefixtures("write")
def test_the_pages_functions_pass_the_check(module: str, settings: Hyperparameters) -> None:
    check_training(replace(settings, train=f"mypackage.{module}:train"))


def test_task_has_the_trials_hyperparameters_and_training_images_alone(write: Write) -> None:
    write(
        "training.py",
        "seen = []\n"
        "def train(network, task):\n"
        "    seen.append((network, task))\n"
        "    for epoch in (1, 2, 3, 4):\n"
        "        assert network(task.images[0][0][None]).shape == (1,)\n"
        "        network.network.layer1.eval()\n"
        "        assert task.report(epoch) == (epoch == 4)\n"
        "        assert network.network.training and not network.network.layer1.training\n",
    )
    run(replace(BASE, architecture="test_resnet", network_input=64, weight_decay=0.2))
    import mypackage.training  # type: ignore[import-not-found]

    [(_, task)] = mypackage.training.seen
    data = patches()
    assert (task.architecture, task.resolution, task.batch_size, task.epochs) == ("test_resnet", 32, 16, 4)
    assert task.learning_rate == pytest.approx(3e-2 * (16 / 128) ** 0.5)
    assert (task.weight_decay, task.precision, task.seed) == (0.2, "fp32", 1)
    assert (task.finished_epochs, task.state, task.device) == (0, None, torch.device("cpu"))
    assert len(task.images) == len(data.training)
    image, target = task.images[7]
    assert torch.equal(image, torch.from_numpy(data.images[data.training[7]])[None] / 255)
    assert target == data.targets[data.training[7]]
    assert torch.equal(task.images.targets, torch.from_numpy(data.targets[data.training]))
    positives = data.targets[data.training].sum()
    assert task.positive_weight == pytest.approx((len(data.training) - positives) / positives)


class DatabaseGone(Exception):  # noqa: N818
    """An error of the worker in report()."""


@pytest.mark.parametrize("end", ["raise ValueError from error", "return", "pass"])
def test_function_cannot_hide_an_error_of_report(write: Write, end: str) -> None:
    write(
        "training.py",
        "def train(network, task):\n"
        "    for epoch in (1, 2, 3, 4):\n"
        "        try:\n"
        "            task.report(epoch)\n"
        "        except Exception as error:\n"
        f"            {end}\n",
    )

    def report(epoch: int, _: float) -> bool:
        if epoch == 2:
            raise DatabaseGone
        return False

    with pytest.raises(DatabaseGone):
        run(report=report)


def test_systemexit_is_an_interruption_only_where_the_worker_must_stop(write: Write) -> None:
    write("training.py", "def train(network, task):\n    raise SystemExit(3)\n")
    with pytest.raises(OwnFunctionError, match=r'train "mypackage.training:train" raised SystemExit: 3'):
        run()
    with pytest.raises(Interrupted):
        run(should_stop=lambda: True)


def test_out_of_memory_in_the_function_is_raised_as_it_is(write: Write) -> None:
    write("training.py", "import torch\ndef train(network, task):\n    raise torch.OutOfMemoryError('of the GPU')\n")
    with pytest.raises(torch.OutOfMemoryError):
        run()
    with pytest.raises(torch.OutOfMemoryError):
        check_training(BASE)


def run_and_stop(*, after: int) -> bytes:
    """Run a training that its worker stops after some epochs; returns the checkpoint."""
    saved: list[bytes] = []
    finished: list[int] = []
    with pytest.raises(Interrupted):
        run(
            report=lambda epoch, _: bool(finished.append(epoch)),
            should_stop=lambda: len(finished) == after,
            save_checkpoint=lambda data: saved.append(bytes(data)),
        )
    return saved[-1]


def test_state_that_grows_between_epochs_is_kept_whole(write: Write) -> None:
    write(
        "training.py",
        "import torch\n"
        "def train(network, task):\n"
        "    for epoch in range(task.finished_epochs + 1, 5):\n"
        "        if task.state is not None:\n"
        "            assert torch.equal(task.state['seen'], torch.arange(3.0)), task.state\n"
        "            assert task.state['text'] == b'epoch 3'\n"
        "        if task.report(epoch, {'seen': torch.arange(float(epoch)), 'text': b'epoch %d' % epoch}):\n"
        "            return\n",
    )
    checkpoint = run_and_stop(after=3)
    assert run(load_checkpoint=lambda: checkpoint).resumed_epochs == 3


def test_state_is_kept_as_it_was_at_the_report(write: Write) -> None:
    write(
        "training.py",
        "import torch\n"
        "from collections import Counter\n"
        "def train(network, task):\n"
        "    state = task.state or {'losses': [], 'drops': Counter([2, 4]), 'weights': list(network.parameters())}\n"
        "    assert state['drops'] == Counter([2, 4]), state\n"
        "    assert len(state['losses']) == task.finished_epochs, state\n"
        "    assert all(torch.equal(*pair) for pair in zip(state['weights'], network.parameters())), state\n"
        "    for epoch in range(task.finished_epochs + 1, 5):\n"
        "        state['losses'].append(torch.tensor(0.7))\n"
        "        if task.report(epoch, state):\n"
        "            return\n",
    )
    checkpoint = run_and_stop(after=2)
    assert run(load_checkpoint=lambda: checkpoint).resumed_epochs == 2


LOOP = (
    "import torch, copy\n"
    "def train(network, task):\n"
    "    optimiser = torch.optim.SGD(network.parameters(), lr=1e-2)\n"
    "    for epoch in range(task.finished_epochs + 1, task.epochs + 1):\n"
    "        network(torch.rand(4, 1, task.resolution, task.resolution)).square().sum().backward()\n"
    "        optimiser.step()\n"
    "        {before}\n"
    "        if task.report({epoch}, {state}) and {obey}: return\n"
)


def loop(before: str = "pass", *, epoch: str = "epoch", state: str = "{}", obey: str = "True") -> str:
    return LOOP.format(before=before, epoch=epoch, state=state, obey=obey)


BAD = {
    "def other(): pass": "mypackage.training has no function train",
    "def train(network): pass": r"raised TypeError: train\(\) takes 1 positional argument but 2 were given",
    "def train(network, task): raise KeyError('lungs')": r'train "mypackage.training:train" raised KeyError: \'lungs\'',
    "def train(network, task): pass": "returned after 0 of 3 epochs, must call report",
    "def train(network, task): task.report(1)": "returned after 1 of 3 epochs, must call report",
    "def train(network, task): return [task.report(epoch) for epoch in (1, 2, 3)]": "did not change the network",
    loop("network.network.fc = torch.nn.Linear(64, 3)"): r"changed the tensors of the network \(fc\.",
    loop("[p.data.fill_(float('nan')) for p in network.parameters()]"): "became NaN after epoch 1.* or correct mypack",
    loop(epoch="epoch - task.finished_epochs"): "reported epoch 1 after epoch 1, must report each epoch once",
    loop(epoch="0"): "reported epoch 0 after epoch 0",
    loop(state="{'best': __import__('numpy').float64(1)}"): r"gave report\(\) state\['best'\] with a float64, must be",
    loop(state="{'a': [1, {2: optimiser}]}"): r"gave report\(\) state\['a'\]\[1\]\[2\] with a SGD, must be a tensor",
    loop(state="3"): r"gave report\(\) a int as state, must be a dict",
    loop(obey="False"): r"called report\(\) for epoch 3 after report\(\) was true, must return then",
    loop().replace("):\n", "):\n    network = copy.deepcopy(network)\n", 1): "did not change the network",
}  # fmt: skip


@pytest.mark.parametrize(("source", "message"), BAD.items())
def test_function_that_breaks_a_rule_is_refused_by_the_check(write: Write, source: str, message: str) -> None:
    write("training.py", source)
    with pytest.raises(InputError, match=message) as raised:
        check_training(BASE)
    assert "\n" not in str(raised.value)


def test_nan_in_a_trial_names_the_function(write: Write) -> None:
    write("training.py", loop("[p.data.fill_(float('nan')) for p in network.parameters()]"))
    with pytest.raises(Diverged, match=r"after epoch 1: lower the learning rate, or correct mypackage.training:train"):
        run()


@pytest.mark.standin
@pytest.mark.usefixtures("write")
@pytest.mark.parametrize("module", MODULES)
def test_function_trains_and_resumes_on_the_tasks_gpu(module: str) -> None:
    with standin_gpu(devices=2, total_memory=4 * 2**30):
        device = open_device("cuda:1", workers=1).torch_device
        options: dict[str, Any] = {"seed": 1, "device": device}
        settings = replace(BASE, train=f"mypackage.{module}:train")
        whole = train(settings, patches(), report=lambda *_: False, **options)
        finished: list[int] = []
        saved: list[bytes] = []
        with pytest.raises(Interrupted):
            train(
                settings,
                patches(),
                report=lambda epoch, _: bool(finished.append(epoch)),
                should_stop=lambda: len(finished) == 2,
                save_checkpoint=lambda data: saved.append(bytes(data)),
                **options,
            )
        resumed = train(settings, patches(), report=lambda *_: False, load_checkpoint=lambda: saved[-1], **options)
        assert np.array_equal(resumed.scores, whole.scores)


@pytest.mark.standin
def test_network_left_on_another_device_is_named(write: Write) -> None:
    write("training.py", "def train(network, task):\n    network.cpu()\n    task.report(1)\n")
    with standin_gpu(devices=1, total_memory=4 * 2**30):
        device = open_device("cuda:0", workers=1).torch_device
        with pytest.raises(OwnFunctionError, match=r"left the network on cpu at report\(\), must be on cuda"):
            train(BASE, patches(), seed=1, device=device, report=lambda *_: False)
