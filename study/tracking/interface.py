"""What a tracker gets: one run per trial, and one for the verdicts. Never a file name or a patient's identifier."""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

Value = str | int | float | bool


@dataclass(frozen=True)
class TrackedRun:
    """The start of a run."""

    experiment: str
    label: str | None
    """None for the run of the verdicts."""
    name: str
    """Shown for the run, such as "Nodule trial 7"."""
    kind: str
    """"search", "confirmation" or "verdicts"."""
    parameters: dict[str, Value]

    def path(self) -> str:
        """Folders of the run below those of other experiments: letters, digits, '.', '_' and '-' only."""
        return "/".join(_folder(part) for part in (self.experiment, self.label, self.name) if part)


class Tracker(Protocol):
    """A service or a folder that keeps runs. One run is open at a time. Any exception means that it is away."""

    def start(self, run: TrackedRun) -> None:
        """Begin a run. An earlier one that is still open is left as it is."""

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Add metrics of an epoch, or of a resolution, to the open run."""

    def record(self, attributes: dict[str, Value]) -> None:
        """Add attributes to the open run; the last value of each counts."""

    def end(self, state: str) -> None:
        """End the open run. state: "complete", "pruned", "failed" or "released"."""


def _folder(part: str) -> str:
    """A part of a path. Where characters are replaced, 6 hexadecimal digits keep two parts apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", part)[:80]
    return plain if plain == part.replace(" ", "_") else f"{plain}-{hashlib.sha256(part.encode()).hexdigest()[:6]}"
