"""The user's network, augmentation and loss: trained, kept with the SHA-256 of their source, or refused."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchxrayvision
from optuna.trial import TrialState
from sqlalchemy import text

from acuity.objectives.errors import InputError
from acuity.objectives.training.network import make_network, normalisation
from acuity.storage.database import Database
from acuity.storage.experiments import find_experiment
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered
from acuity.study.registry.sources import check_same_sources
from acuity.study.search.networks import check_networks
from support.one_trial import registered_context, run_one
from support.own_functions import Write, own_experiment, own_package


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module of mypackage, which has those of docs/extending.md."""
    with own_package(tmp_path / "packages") as write_module:
        yield write_module


ALL = {
    "architecture": "mypackage.networks:small_net",
    "training": 'augmentation = "mypackage.steps:augment"\nloss = "mypackage.steps:focal_loss"',
}


@pytest.mark.usefixtures("write")
def test_the_pages_network_augmentation_and_loss_train_a_trial(
    database: Database, tmp_path: Path, phantoms: Path
) -> None:
    experiment = own_experiment(phantoms, tmp_path, **ALL)
    check_networks(experiment)
    context = registered_context(database, experiment)
    trial = run_one(context)
    assert trial.state is TrialState.COMPLETE, trial.user_attrs
    assert trial.params["architecture"] == "mypackage.networks:small_net"
    stored = find_experiment(database, experiment.name)
    assert stored is not None
    assert set(stored.definition["sources"]) == {
        "mypackage.networks:small_net",
        "mypackage.steps:augment",
        "mypackage.steps:focal_loss",
    }
    with database.engine.connect() as connection:
        (sha256,) = connection.scalars(text("select source_sha256 from acuity.feasible_batches"))
    assert re.fullmatch(r"[0-9a-f]{64}", sha256)


def test_a_worker_with_another_source_or_without_the_module_refuses(
    database: Database, tmp_path: Path, phantoms: Path, write: Write
) -> None:
    experiment = own_experiment(phantoms, tmp_path, architecture="mypackage.networks:small_net")
    registered: Registered = registered_context(database, experiment).registered
    check_same_sources(registered)
    write("networks.py", "def small_net(**_):\n    raise NotImplementedError\n")
    with pytest.raises(UsageError, match=r'source of "mypackage.networks:small_net" here .* is not the one of experim'):
        check_same_sources(registered)
    with pytest.raises(UsageError, match="Install that version here"):
        registered_context(database, experiment)
    (tmp_path / "packages" / "mypackage" / "networks.py").unlink()
    with pytest.raises(InputError, match=r"there is no module mypackage.networks here. Install its package"):
        check_same_sources(registered)


def test_a_loss_that_raises_in_a_trial_fails_it_with_its_message(
    database: Database, tmp_path: Path, phantoms: Path, write: Write
) -> None:
    write("steps.py", "def loss(logits, targets, positive_weight):\n    raise KeyError('weights of epoch 3')\n")
    context = registered_context(database, own_experiment(phantoms, tmp_path, training='loss = "mypackage.steps:loss"'))
    trial = run_one(context)
    assert trial.state is TrialState.FAIL
    assert "loss \"mypackage.steps:loss\" raised KeyError: 'weights of epoch 3'" in trial.user_attrs["reason"]


def test_a_nan_from_an_augmentation_prunes_the_trial_and_names_it(
    database: Database, tmp_path: Path, phantoms: Path, write: Write
) -> None:
    write("steps.py", "def augment(images):\n    return images * float('nan')\n")
    context = registered_context(
        database, own_experiment(phantoms, tmp_path, training='augmentation = "mypackage.steps:augment"')
    )
    trial = run_one(context)
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs["reason"].endswith("lower the learning rate, or correct mypackage.steps:augment")


NET = "from torch import nn\nimport torch\n"
BAD_NETWORKS = {
    "def other(): pass": "mypackage.networks has no function small_net",
    "import no_such_library": r"mypackage.networks cannot be imported \(ModuleNotFoundError: No module named 'no_such",
    "from torch.nn import Linear as small_net": r'small_net is written in torch\.nn\.modules\.linear\. Name "torch',
    "def small_net(width): pass": r"raised TypeError .*: it is called with in_chans=1, num_classes=1, input_size=",
    "def small_net(**_): return 3": r"returned a int, must be a torch.nn.Module",
    NET + "def small_net(**_): return nn.Conv2d(1, 1, 3)": r"gives shape \[2, 1, 14, 14\] for 2 images of 16 px",
    NET + "class small_net(nn.Module):\n def __init__(self, **_): super().__init__()\n def forward(self, x): return 1":
    r"gives a int for 2 images",
    NET + "class small_net(nn.Module):\n def __init__(self, **_): super().__init__()\n"
    " def forward(self, x): return x.mean((2, 3)) / 0 * 0": r"gives NaN or infinite logits for images of 16 px",
    NET + "class small_net(nn.Module):\n def __init__(self, **_): super().__init__()\n"
    " def forward(self, x): raise IndexError('depth')": r"raised IndexError for images of 16 px \(depth\)",
}  # fmt: skip


@pytest.mark.parametrize(("source", "message"), BAD_NETWORKS.items())
def test_a_network_that_cannot_be_used_is_refused_before_the_launch(
    tmp_path: Path, phantoms: Path, write: Write, source: str, message: str
) -> None:
    write("networks.py", source)
    with pytest.raises(InputError, match=message) as raised:
        check_networks(own_experiment(phantoms, tmp_path, architecture="mypackage.networks:small_net"))
    assert "\n" not in str(raised.value)


BAD_STEPS = [
    ("loss", "def f(*_): raise ValueError('gamma')", r'loss "mypackage.steps:f" raised ValueError: gamma'),
    (
        "loss",
        "def f(logits, *_): return logits",
        r"returned float32 \[8\] on cpu, must be a float tensor of shape \[\]",
    ),
    ("loss", "def f(logits, *_): return 1.0", r"returned a float, must be a float tensor"),
    ("loss", "def f(logits, *_): return logits.log().sum()", r"is nan for logits from -10 to 10"),
    ("augmentation", "def f(x): return x[..., 1:]", r"returned float32 \[2, 1, 16, 15\] on cpu for float32 \[2, 1, 16"),
    ("augmentation", "def f(x): return x / 0 * 0", r"gives NaN or infinite pixels at 16 px"),
    ("augmentation", "def g(x): return x", r"mypackage.steps has no function f"),
]


@pytest.mark.parametrize(("part", "source", "message"), BAD_STEPS)
def test_a_loss_or_augmentation_that_cannot_be_used_is_refused_before_the_launch(
    tmp_path: Path, phantoms: Path, write: Write, part: str, source: str, message: str
) -> None:
    write("steps.py", source)
    with pytest.raises(InputError, match=message) as raised:
        check_networks(own_experiment(phantoms, tmp_path, training=f'{part} = "mypackage.steps:f"'))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": 'loss = "focal"'}, 'training.loss has "focal", must be a function as "module:function"'),
        ({"training": 'loss = "os:path:join"'}, 'must be a function as "module:function"'),
        ({"architecture": "a b"}, "search.architectures has .*, must be timm's name of a network"),
        (
            {"architecture": "mypackage.networks:small_net", "training": "pretrained = true"},
            "mypackage.networks:small_net in search.architectures is not timm's; load the weights in the function",
        ),
        ({"training": 'augment = false\naugmentation = "a:b"'}, "training.augment = false are both given"),
    ],
)
def test_a_wrong_name_is_a_mistake_of_the_file(
    tmp_path: Path, phantoms: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        own_experiment(phantoms, tmp_path, **change)


@pytest.mark.usefixtures("write")
def test_another_function_under_the_same_name_of_experiment_is_refused(
    database: Database, tmp_path: Path, phantoms: Path
) -> None:
    experiment = own_experiment(phantoms, tmp_path, training='loss = "mypackage.steps:focal_loss"')
    registered_context(database, experiment)
    without = replace(experiment, training=replace(experiment.training, loss=None))
    with pytest.raises(UsageError, match=r'training.loss: "mypackage.steps:focal_loss" -> null'):
        registered_context(database, without)


XRV_FILE = torchxrayvision.models.model_urls["densenet121-res224-all"]["weights_url"].rsplit("/", 1)[1]


@pytest.fixture
def xrv_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TorchXRayVision's folder of weights, empty."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / ".torchxrayvision" / "models_data"
    folder.mkdir(parents=True)
    return folder


CHEST = {"architecture": "mypackage.chest:xrv_densenet", "search": "max_batch_size = 4"}


@pytest.mark.usefixtures("write")
@pytest.mark.filterwarnings("ignore")  # of torchxrayvision's classes in the file
def test_torchxrayvisions_network_starts_from_its_weights_in_its_range_of_grey_values(
    database: Database, tmp_path: Path, phantoms: Path, xrv_folder: Path
) -> None:
    torch.manual_seed(3)
    published = torchxrayvision.models.DenseNet().eval()  # stands for the download: the same architecture
    torch.save(published, xrv_folder / XRV_FILE)
    experiment = own_experiment(phantoms, tmp_path, **CHEST)
    experiment = replace(experiment, search=replace(experiment.search, resolutions=(32,)))
    check_networks(experiment)
    network = make_network("mypackage.chest:xrv_densenet", input_size=64).eval()
    images = torch.rand(2, 1, 64, 64)
    mean, std = normalisation(network)
    its_images = torchxrayvision.datasets.normalize(images.numpy(), maxval=1)  # -1024 to 1024
    features = published.features2(torch.from_numpy(its_images))
    with torch.no_grad():
        assert torch.allclose(network((images - mean) / std), network.classifier(features), atol=1e-4)
        assert features.std() > 0.01
    trial = run_one(registered_context(database, experiment))
    assert trial.state is TrialState.COMPLETE, trial.user_attrs


@pytest.mark.usefixtures("write", "xrv_folder")
def test_torchxrayvisions_network_without_its_file_and_network_says_where_the_file_belongs(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # no network: a port that refuses
    with pytest.raises(InputError, match=r"no densenet121-res224-all in .*models_data/: copy its file there") as raised:
        check_networks(own_experiment(phantoms, tmp_path, **CHEST))
    assert "\n" not in str(raised.value)
