"""Design of a confirmation: which patients test the networks, and how many networks each resolution gets."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from acuity.study.config.schema import Experiment
from acuity.study.dataset.image_set import ImageSet, open_folds


@dataclass(frozen=True)
class Design:
    """Test patients and networks of a confirmation."""

    kind: Literal["cross-fitted", "held-out"]
    seeds: int | None = None
    """Networks of each finalist if held-out. None if cross-fitted, which has at most one for each fold."""
    folds: int | None = None
    """None if held-out, like the next two fields."""
    min_folds: int | None = None
    """Number of folds that are trained at least."""
    folds_sha256: str | None = None
    """SHA-256 of the patients and their folds."""

    @property
    def networks(self) -> int:
        """The largest number of networks of a finalist."""
        networks = self.folds or self.seeds
        assert networks is not None
        return networks

    @property
    def min_networks(self) -> int:
        """The smallest number of networks of a finalist."""
        return self.min_folds or self.networks

    def fold_numbers(self) -> Iterator[int | None]:
        """The folds, from 0. A held-out confirmation has the one "fold" None."""
        yield from (None,) if self.folds is None else range(self.folds)

    def networks_by_fold(self, networks: int) -> dict[int | None, int]:
        """Number of networks in each fold, for a number of networks of a finalist: one in each of the first folds."""
        return {None: networks} if self.folds is None else dict.fromkeys(range(networks), 1)

    def describe(self) -> str:
        """The design in a few words, for tables."""
        if self.folds is None:
            return f"held-out test patients, {self.seeds} seeds"
        return f"cross-fitted, one network for each of {self.networks_in_words} folds"

    @property
    def networks_in_words(self) -> str:
        """The number of networks of a finalist, such as "4" or "2 to 4"."""
        least, most = self.min_networks, self.networks
        return str(most) if least == most else f"{least} to {most}"


def choose_design(experiment: Experiment, image_set: ImageSet, *, seeds: int | None = None) -> Design:
    """The design of the confirmation with its folds. The folds' file is made where it does not exist.

    seeds: as in `planned_design`.
    """
    design = planned_design(experiment, image_set, seeds=seeds)
    return design if design.folds is None else replace(design, folds_sha256=open_folds(image_set, design.folds).sha256)


def planned_design(experiment: Experiment, image_set: ImageSet, *, seeds: int | None = None) -> Design:
    """The design of the confirmation, without the SHA-256 of its folds.

    By default a published test part is tested held-out, so that the AUCs compare with others on it, and so is a split
    by image. Any other experiment is cross-fitted. seeds: of a held-out confirmation, by default [confirm] seeds.
    """
    confirm, data = experiment.confirm, experiment.data
    is_held_out = bool(image_set.selection.published) or data.split_by == "image" or data.paper_split
    if (confirm.design or ("held-out" if is_held_out else "cross-fitted")) == "held-out":
        return Design("held-out", seeds=seeds or confirm.seeds)
    return Design("cross-fitted", folds=confirm.folds, min_folds=confirm.min_folds)
