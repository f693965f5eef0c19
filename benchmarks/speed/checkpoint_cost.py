"""Claim: checkpoints cost under 2 % of a trial's time, however short its epochs are.

The trial is Acuity's `train` with a resnet34: 244 MiB of parameters, buffers and optimiser state. The GPU is the
stand-in of the tests, whose tensors are on the CPU. Its speed is simulated: an epoch is 20 short sleeps, and a copy
within the GPU sleeps for its bytes at 1.5 TB/s (an A100). Copies to the host, packing, SHA-256, writing and fsync are
real. An epoch takes 0.1, 1, 10 or 60 s. Three arms run in turn for each length (60 s: the last one alone):

- none: no checkpoints;
- every epoch: packed and written after each epoch, before the next one starts (Acuity before);
- thread: as Acuity does it.

The cost is the time above that of `none`. Its spread is that of parts of 30 s, or of epochs where an epoch is longer or
there are fewer. The share of a trial includes its last checkpoint, for which every trial waits.

The kept run misses the claim for epochs of 0.1 s (3.8 %). It ran beside other programs, at a load of 27.

Run: python benchmarks/speed/checkpoint_cost.py   (6 minutes; the cores should be idle)
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acuity.objectives.training import checkpoint_writer, train
from acuity.objectives.training.checkpoint import Checkpoint, checkpoint_to_bytes
from acuity.objectives.training.epochs import Epochs
from acuity.objectives.training.interface import Hyperparameters, LabelledImages
from acuity.objectives.training.learner import Learner
from acuity.storage.checkpoints import Checkpoints, open_checkpoints

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]
from folders import scratch_folder
from result_line import make_goal, print_result

from support.standin_gpu import standin_gpu

EPOCHS = {  # seconds of an epoch -> epochs of each arm
    0.1: {"none": 50, "every epoch": 8, "thread": 600},
    1.0: {"none": 5, "every epoch": 8, "thread": 60},
    10.0: {"none": 1, "every epoch": 3, "thread": 4},
    60.0: {"thread": 2},
}
PART_S = 30.0
STEPS = 20  # of an epoch: min_updates_per_epoch's default
GPU_BYTES_PER_S = 1.5e12
MIB = 2**20


class _WriterOnThePath(checkpoint_writer.CheckpointWriter):
    """Packs and writes every epoch's checkpoint before the next epoch starts."""

    def keep(self, checkpoint: Checkpoint) -> None:
        self._save_now(checkpoint)

    def write_last(self, checkpoint: Checkpoint) -> None:
        self._save_now(checkpoint)

    def _save_now(self, checkpoint: Checkpoint) -> None:
        if self._save is not None:
            self._save(checkpoint_to_bytes(checkpoint))


def main() -> None:
    """Run every length and arm in turn, print a table and one line of JSON."""
    torch.set_num_threads(1)
    cells = []
    print(f"{'epoch s':>8} {'arm':>12} {'cost of an epoch ms':>20} {'last write s':>13} {'share of the trial %':>21}")
    with scratch_folder("acuity-checkpoints-") as folder, standin_gpu(devices=1):
        checkpoints = open_checkpoints(str(folder))
        for epoch_s, arms in EPOCHS.items():
            usual_s = 0.0 if "none" in arms else epoch_s
            for arm, epochs in arms.items():
                cell = _run(arm, epochs=epochs, epoch_s=epoch_s, checkpoints=checkpoints)
                usual_s = usual_s or statistics.median(cell["durations"])
                cells.append({"arm": arm, "epoch_s": epoch_s, **_costs(cell, usual_s=usual_s, epoch_s=epoch_s)})
                print(
                    "{epoch_s:>8} {arm:>12} {epoch_cost_ms:>20} {last_write_s:>13} {share_percent:>21}".format(
                        **cells[-1]
                    ),
                    flush=True,
                )
    print_result("checkpoint_cost", n="parts of 30 s or epochs, see cells", goals=_goals(cells), cells=cells)


def _run(arm: str, *, epochs: int, epoch_s: float, checkpoints: Checkpoints) -> dict[str, Any]:
    """Train on the simulated GPU; returns the durations of the epochs and the time after the last one, in s."""
    ends: list[float] = []
    sizes: list[int] = []

    def save(data: bytes) -> None:
        sizes.append(len(data))
        checkpoints.write("bench", 0, attempt=1, data=data)

    def report(*_: float) -> bool:
        ends.append(time.perf_counter())
        return False

    started: list[float] = []
    with _simulated(started, epoch_s=epoch_s, on_the_path=arm == "every epoch"):
        train.train(
            Hyperparameters("resnet34", resolution=64, batch_size=2, learning_rate=1e-3, epochs=epochs),
            _images(),
            seed=0,
            device=torch.device("cuda", 0),
            report=report,
            save_checkpoint=None if arm == "none" else save,
        )
    ended = time.perf_counter()
    durations = np.diff([started[0], *ends]).tolist()
    # On the path, the last checkpoint is written before the last report.
    last_s = durations.pop() - epoch_s if arm == "every epoch" else ended - ends[-1]
    return {"durations": durations, "last_s": last_s, "total_s": ended - started[0], "epochs": epochs, "sizes": sizes}


def _images() -> LabelledImages:
    rows = np.arange(8)
    return LabelledImages(
        np.zeros((8, 64, 64), np.uint8),
        (rows % 2).astype(np.float32),
        rows.astype(np.int64),
        training=rows[:4],
        validation=rows[4:],
    )


@contextmanager
def _simulated(started: list[float], *, epoch_s: float, on_the_path: bool) -> Iterator[None]:
    """Replace the steps, the validation and the copy within the GPU by sleeps; the optimiser gets its state."""

    def train_one_epoch(learner: Learner, *_: Any, **__: Any) -> None:
        if not learner.optimiser.state:
            for parameter in learner.network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            learner.optimiser.step()
            learner.optimiser.zero_grad()
        if not started:
            started.append(time.perf_counter())
        for _step in range(STEPS):
            time.sleep(epoch_s / STEPS)

    def predict(epochs: Epochs, _: int) -> NDArray[np.float64]:
        return np.linspace(0, 1, len(epochs.data.validation))

    def allocate(sources: list[torch.Tensor], **_: bool) -> list[torch.Tensor]:
        return sources

    def foreach_copy(_: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        time.sleep(2 * sum(tensor.nbytes for tensor in sources) / GPU_BYTES_PER_S)

    finish = Epochs.finish

    def finish_with_whole_checkpoints(epochs: Epochs, network: dict[str, Any], **states: dict[str, Any]) -> None:
        def write_last(_: dict[str, Any], *, seconds: float) -> None:
            whole = Checkpoint(epochs.identity, list(epochs.aucs), seconds, network, **states)
            epochs.writer.write_last(whole)

        epochs._write_last = write_last
        finish(epochs, network, **states)

    replaced = [
        (train, "_train_one_epoch", train_one_epoch),
        (Epochs, "_predict", predict),
        (checkpoint_writer, "_allocate", allocate),
        (torch, "_foreach_copy_", foreach_copy),
    ]
    if on_the_path:
        replaced.append((train, "CheckpointWriter", _WriterOnThePath))
        replaced.append((Epochs, "finish", finish_with_whole_checkpoints))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _costs(run: dict[str, Any], *, usual_s: float, epoch_s: float) -> dict[str, Any]:
    """Costs against epochs of usual_s. Every part has the same number of epochs."""
    size = max(1, round(PART_S / epoch_s))
    durations = run["durations"]
    whole = range(0, len(durations) - size + 1, size) if len(durations) >= size else []
    parts = [durations[start : start + size] for start in whole] or [[duration] for duration in durations]
    shares = [100 * (sum(part) - len(part) * usual_s) / sum(part) for part in parts]
    total_s = run["total_s"]
    return {
        "epochs": run["epochs"],
        "writes": len(run["sizes"]),
        "largest_mib": round(max(run["sizes"], default=0) / MIB),
        "last_mib": round(run["sizes"][-1] / MIB) if run["sizes"] else 0,
        "trial_s": round(total_s, 1),
        "epoch_cost_ms": round(1000 * (statistics.mean(durations) - usual_s), 1),
        "last_write_s": round(run["last_s"], 2),
        "share_percent": round(100 * (total_s - run["epochs"] * usual_s) / total_s, 2),
        "part_share_percent": {
            "n": len(shares),
            "median": round(statistics.median(shares), 2),
            "low": round(min(shares), 2),
            "high": round(max(shares), 2),
        },
    }


def _goals(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        make_goal(
            f"share_percent_epochs_of_{cell['epoch_s']:g}_s",
            cell["share_percent"],
            "< 2 (of the trial's time, its last checkpoint included)",
            met=cell["share_percent"] < 2,
            low=cell["part_share_percent"]["low"],
            high=cell["part_share_percent"]["high"],
        )
        for cell in cells
        if cell["arm"] == "thread"
    ]


if __name__ == "__main__":
    main()
