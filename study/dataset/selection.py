"""Select the images of an experiment: read its index, filter it, and split it by patient."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acuity.objectives.errors import InputError
from acuity.objectives.index.filters import FilteredIndex, Filters, apply_filters
from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.split.folds import Folds, read_or_make_folds
from acuity.objectives.split.published import published_parts
from acuity.objectives.split.split import Split, read_or_make_split, take_split
from acuity.objectives.tables.cells import LabelPolicy
from acuity.study.config.paths import split_path
from acuity.study.config.schema import Experiment


@dataclass(frozen=True, eq=False)
class ImageSelection:
    """The images that pass the filters. The split covers the whole index, so that no filter moves a patient."""

    whole: ImageIndex
    """The index before filters."""
    filtered: FilteredIndex
    published: Mapping[str, str]
    """The part of each patient by a published split. Empty without one."""
    split_path: Path
    unit: Literal["patient", "file"]
    """The unit of the split: "patient", or "file" with split_by = "image"."""
    fractions: tuple[float, ...]
    """Share of the units in training, validation and test."""

    @property
    def index(self) -> ImageIndex:
        """The index after filters."""
        return self.filtered.index

    def split(self, *, together: Sequence[Collection[str]] = (), write: bool = True) -> Split:
        """The split of the images that pass the filters. It is made where its file does not exist.

        together, write: as in `read_or_make_split`.
        """
        return take_split(self._whole_split(together, write=write), self.index, self.filtered.rows)

    def folds(
        self, split: Split, *, count: int, duplicates: Sequence[Sequence[int]], together: Sequence[Collection[str]]
    ) -> Folds:
        """The folds of the images that pass the filters. They are made where their file does not exist.

        split: of these images, without the images that are in no part. duplicates: rows of these images with the same
        picture. together: as in `split`.
        """
        return read_or_make_folds(
            self.whole,
            self._whole_split(together, write=True),
            split,
            rows=self.filtered.rows,
            count=count,
            keep_together=together if self.unit == "patient" else (),
            duplicates=duplicates,
        )

    def _whole_split(self, together: Sequence[Collection[str]], *, write: bool) -> Split:
        return read_or_make_split(
            self.whole,
            path=self.split_path,
            published=self.published,
            keep_together=together if self.unit == "patient" else (),
            fractions=self.fractions,
            unit=self.unit,
            write=write,
        )


def select_images(experiment: Experiment) -> ImageSelection:
    """Read and filter the index. InputError names the mistake in the index, a list of images or a filter."""
    data = experiment.data
    whole = read_index(
        data.index,
        images=data.images,
        format_name=data.format,
        mapping=data.columns,
        policy=LabelPolicy(uncertain=data.uncertain, blank=data.blank),
    )
    published = published_parts(whole, train_val_list=data.train_val_list, test_list=data.test_list)
    if published and (data.paper_split or data.split_by == "image"):  # of lists, the experiment file's check says so
        raise InputError(
            f"{data.index}: has a split column, and [data] has {'paper_split' if data.paper_split else 'split_by'} as "
            "well; keep one of the two (the split is read from a column named split alone)"
        )
    filtered = apply_filters(
        whole,
        Filters(
            views=data.views,
            ages=data.ages,
            no_finding=data.no_finding,
            one_image_per_patient=data.one_image_per_patient,
        ),
    )
    return ImageSelection(
        whole=whole,
        filtered=filtered,
        published=published,
        split_path=split_path(experiment),
        unit="file" if data.split_by == "image" else "patient",
        fractions=(0.8, 0.2, 0.0) if data.paper_split else (0.64, 0.16, 0.20),
    )
