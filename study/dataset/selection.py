"""Which images an experiment is about: its index, read as the file says, filtered, and split by patient."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acuity.objectives.index.cells import Reading
from acuity.objectives.index.filters import Filtered, Filters, apply_filters
from acuity.objectives.index.image_index import ImageIndex, read_index
from acuity.objectives.split.published import published_parts
from acuity.objectives.split.split import Split, read_or_make_split, take_split
from acuity.study.config.paths import split_path
from acuity.study.config.schema import Experiment


@dataclass(frozen=True, eq=False)
class ImageSelection:
    """The images that are left of an index; the split is of the whole index, so that no filter moves a patient."""

    whole: ImageIndex
    left: Filtered
    published: Mapping[str, str]
    split_path: Path
    unit: Literal["patient", "file"]
    """What is split: "patient", or "file" with split_by = "image"."""
    fractions: tuple[float, ...]

    @property
    def index(self) -> ImageIndex:
        """Of the images that are left."""
        return self.left.index

    def split(self, *, together: Sequence[Collection[str]] = (), write: bool = True) -> Split:
        """Their parts; the split is made if there is none. Keywords as in `read_or_make_split`."""
        split = read_or_make_split(
            self.whole,
            path=self.split_path,
            published=self.published,
            together=together if self.unit == "patient" else (),
            fractions=self.fractions,
            unit=self.unit,
            write=write,
        )
        return take_split(split, self.index, self.left.rows)


def select_images(experiment: Experiment) -> ImageSelection:
    """Read the index and filter it. InputError names what is wrong with the index, a list or a filter."""
    data = experiment.data
    whole = read_index(
        data.index,
        images=data.images,
        format_name=data.format,
        reading=Reading(uncertain=data.uncertain, blank=data.blank),
    )
    published = published_parts(whole, train_val_list=data.train_val_list, test_list=data.test_list)
    left = apply_filters(
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
        left=left,
        published=published,
        split_path=split_path(experiment),
        unit="file" if data.split_by == "image" else "patient",
        fractions=(0.8, 0.2, 0.0) if data.paper_split else (0.64, 0.16, 0.20),
    )
