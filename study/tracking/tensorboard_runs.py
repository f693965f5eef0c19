"""Runs in a folder that TensorBoard shows: experiment/label/trial."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from acuity.study.tracking.interface import TrackedRun, Value


class TensorboardRuns:
    """Event files below a folder; TensorBoard's tab HPARAMS shows parameters and the last AUC of each trial."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._parameters: dict[str, Value] = {}
        self._attributes: dict[str, Value] = {}
        self._last: dict[str, float] = {}

    def start(self, run: TrackedRun) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._folder / run.path()))
        self._parameters, self._attributes, self._last = run.parameters, {"kind": run.kind}, {}

    def report(self, step: int, metrics: dict[str, float]) -> None:
        assert self._writer is not None
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()
        self._last |= metrics

    def record(self, attributes: dict[str, Value]) -> None:
        self._attributes |= attributes

    def end(self, state: str) -> None:
        assert self._writer is not None
        rows = "\n".join(f"| {key} | {value} |" for key, value in {**self._attributes, "state": state}.items())
        self._writer.add_text("attributes", f"| attribute | value |\n| --- | --- |\n{rows}")
        # add_hparams of the writer would make a second run of the trial.
        for summary in hparams(dict(self._parameters), dict(self._last)):
            self._writer._get_file_writer().add_summary(summary)
        self._writer.close()
        self._writer = None
