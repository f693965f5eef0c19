"""An experiment's image set, opened: index, split and cached pixels, checked against the experiment."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.image_cache import ImageCache, build_cache
from objectives.index import ImageIndex, read_index
from objectives.split import Split, check_label, leave_out, read_or_make_split
from objectives.task import LabelledImages
from study.experiment import Experiment, cache_folder, split_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """What a worker holds of an image set; the pixels stay on disk, mapped into memory."""

    index: ImageIndex
    split: Split
    cache: ImageCache


def open_image_set(experiment: Experiment, *, progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """Read the index, read or write the split, and build what is missing of the cache; bad images are in no part.

    progress: called with (images done, images in all) while the cache is built.
    """
    index = read_index(experiment.data.index, images=experiment.data.images)
    split = read_or_make_split(index, path=split_path(experiment))
    for label in experiment.labels:
        check_label(index, split, label)
    cache = build_cache(
        index,
        folder=cache_folder(experiment, index.sha256),
        resolutions=experiment.search.resolutions,
        fit=experiment.data.fit,
        on_bad_image=experiment.data.on_bad_image,
        progress=progress,
    )
    if cache.bad:
        logger.warning("%d of %d images are bad and left out of everything", len(cache.bad), cache.count)
        split = leave_out(split, np.array([image.row for image in cache.bad]))
        for label in experiment.labels:
            check_label(index, split, label)
    return ImageSet(index=index, split=split, cache=cache)


def training_images(image_set: ImageSet, labels: tuple[str, ...]) -> int:
    """Training images of the label that has most of them (labels may be missing for some images)."""
    rows = image_set.split.rows("training")
    return max(int(np.isfinite(image_set.index.target(label)[rows]).sum()) for label in labels)


def labelled_images(image_set: ImageSet, *, label: str, resolution: int) -> LabelledImages:
    """The images of one label at one resolution, with their training and validation rows."""
    targets = image_set.index.target(label)
    known = np.isfinite(targets)
    patients = image_set.index.table["patient"].factorize()[0].astype(np.int64)

    def rows(part: str) -> NDArray[np.int64]:
        all_rows: NDArray[np.int64] = image_set.split.rows(part)
        of_label: NDArray[np.int64] = all_rows[known[all_rows]]
        return of_label

    return LabelledImages(
        images=image_set.cache.open(resolution),
        targets=targets,
        patients=patients,
        training=rows("training"),
        validation=rows("validation"),
    )
