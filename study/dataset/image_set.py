"""Open the image set of an experiment: its index, split and cached pixels."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acuity.objectives.images.cache import ImageCache, build_cache
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.split.duplicates import (
    DuplicateCounts,
    count_duplicates,
    duplicates_across_parts,
    find_cached_duplicates,
    patients_sharing_pictures,
)
from acuity.objectives.split.file import PARTS
from acuity.objectives.split.folds import Folds
from acuity.objectives.split.split import Split, check_label, exclude_rows
from acuity.objectives.training.interface import LabelledImages
from acuity.study.config.paths import cache_folder
from acuity.study.config.schema import Experiment
from acuity.study.dataset.selection import ImageSelection, select_images
from acuity.study.registry.identity import ImageIdentity

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """An opened image set. The pixels stay on disk and are mapped into memory."""

    index: ImageIndex
    split: Split
    cache: ImageCache
    selection: ImageSelection
    duplicates: Sequence[Sequence[int]]
    """Rows of each picture that occurs more than once."""
    repeats: DuplicateCounts
    suspicions: tuple[str, ...]
    """Facts about labels, cells and pixels that may be a mistake in the image set, with counts and examples."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of images that each filter leaves out."""
        return self.selection.filtered.left_out

    @property
    def identity(self) -> ImageIdentity:
        """SHA-256 sums by which the registry compares image sets."""
        return ImageIdentity(
            index_sha256=self.index.sha256,
            split_sha256=self.split.sha256,
            whole_index_sha256=self.selection.whole.sha256,
            whole_split_sha256=self.split.whole_sha256,
            unused_sha256=self.split.unused_sha256,
        )


def open_image_set(
    experiment: Experiment, *, check_files: bool = False, progress: Callable[[int, int], None] | None = None
) -> ImageSet:
    """Read and filter the index, read or write the split, and build the missing arrays of the cache.

    Bad images, and images that repeat a picture of an earlier part, are in no part. InputError names a mistake in the
    image set. check_files: compare every file with the one that was decoded, not only a sample. progress: called with
    (images done, images in all) while the cache is built.
    """
    selection = select_images(experiment)
    index = selection.index
    # Repeated pictures are known only after decoding. A mistake in a label is reported before it.
    _check_labels(experiment, index, selection.split(write=False))
    cache = build_cache(
        index,
        folder=cache_folder(experiment, index.files_sha256),
        resolutions=experiment.search.resolutions,
        fit=experiment.data.fit,
        on_bad_image=experiment.data.on_bad_image,
        check_files=check_files,
        progress=progress,
    )
    bad = [image.row for image in cache.bad]
    repeats = find_cached_duplicates(cache.open(max(experiment.search.resolutions)), bad=bad)
    split = selection.split(together=patients_sharing_pictures(index, repeats))
    counts = count_duplicates(index, split, repeats)
    unused = np.union1d(duplicates_across_parts(split, repeats), np.array(bad, dtype=np.int64))
    if len(unused):
        logger.warning(
            "of %s images %s are bad and %s repeat a picture of an earlier part; these are in no part",
            f"{cache.count:,}",
            f"{len(bad):,}",
            f"{counts.left_out:,}",
        )
        split = exclude_rows(split, unused)
        _check_labels(experiment, index, split)
    return ImageSet(
        index=index,
        split=split,
        cache=cache,
        selection=selection,
        duplicates=repeats,
        repeats=counts,
        suspicions=(*index.suspicions, *_different_depths(cache)),
    )


def _different_depths(cache: ImageCache) -> tuple[str, ...]:
    """A suspicion if the images of 16 bits are scaled by different depths."""
    if len(cache.depths) < 2:
        return ()
    groups = "; ".join(
        f"{group.bits} bits: {group.images:,} images (index line {', '.join(f'{line:,}' for line in group.lines)})"
        for group in cache.depths
    )
    return (
        f"The images of 16 bits use different depths, and each is scaled by its own: {groups}. Look at one of each: a "
        "few brighter pixels may have made the others of an image dark.",
    )


def _check_labels(experiment: Experiment, index: ImageIndex, split: Split) -> None:
    parts = PARTS[:-1] if experiment.data.paper_split else PARTS
    for label in experiment.labels:
        check_label(index, split, label, parts=parts)


def training_images(image_set: ImageSet, labels: tuple[str, ...]) -> int:
    """The largest number of training images of a label. A label may be missing for some images."""
    return max(_training_images(image_set, labels))


def fewest_training_images(image_set: ImageSet, labels: tuple[str, ...]) -> int:
    """The smallest number of training images of a label."""
    return min(_training_images(image_set, labels))


def _training_images(image_set: ImageSet, labels: tuple[str, ...]) -> list[int]:
    rows = image_set.split.rows("training")
    return [int(np.isfinite(image_set.index.target(label)[rows]).sum()) for label in labels]


def open_folds(image_set: ImageSet, count: int) -> Folds:
    """The folds of the patients outside validation, made where their file does not exist."""
    return image_set.selection.folds(
        image_set.split,
        count=count,
        duplicates=image_set.duplicates,
        together=patients_sharing_pictures(image_set.index, image_set.duplicates),
    )


def labelled_images(
    image_set: ImageSet, *, label: str, resolution: int, training: NDArray[np.int64] | None = None
) -> LabelledImages:
    """The images of one label at one resolution, with their training and validation rows.

    training: the rows to train on, of which those with a value of the label are taken. By default the training part.
    """
    targets = image_set.index.target(label)
    known = np.isfinite(targets)
    patients = image_set.index.table["patient"].factorize()[0].astype(np.int64)

    def known_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        labelled: NDArray[np.int64] = rows[known[rows]]
        return labelled

    return LabelledImages(
        images=image_set.cache.open(resolution),
        targets=targets,
        patients=patients,
        training=known_rows(image_set.split.rows("training") if training is None else training),
        validation=known_rows(image_set.split.rows("validation")),
    )
