"""Build the arrays of a cache that are missing. A build that was interrupted resumes at its record."""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from acuity.objectives.errors import InputError
from acuity.objectives.images.arrays import CacheArray, DecodingJob, create_draft, open_complete, publish, run_jobs
from acuity.objectives.images.digests import digest_array, find_changed_rows
from acuity.objectives.images.faults import changed, too_small, unreadable
from acuity.objectives.images.record import CacheRecord, new_record, read_record
from acuity.objectives.images.resizing import Fit
from acuity.objectives.index.image_index import ImageIndex

logger = logging.getLogger(__name__)
OnBadImage = Literal["refuse", "drop"]
"""An image that cannot be read or is smaller than the largest resolution makes the build fail ("refuse") or is used in
no part of the experiment ("drop")."""
OTHER_FOLDER = 'name another folder with [data] cache = "PATH"'
_CHUNK = 32
"""Images per job. A resumed build repeats the unfinished jobs; progress is reported per job."""
_SAVE_INTERVAL_S = 5.0
_DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class CacheBuild:
    """The arguments of a build."""

    index: ImageIndex
    arrays: list[CacheArray]
    fit: Fit
    on_bad_image: OnBadImage

    @property
    def record_path(self) -> Path:
        return self.arrays[0].folder / f"{self.arrays[0].key}.json"

    @property
    def file_pattern(self) -> str:
        """Pattern of the paths of all arrays of the image set and their record."""
        return f"{self.arrays[0].folder / self.arrays[0].key}*"

    @property
    def largest(self) -> int:
        """The largest resolution of the arrays."""
        return max(array.resolution for array in self.arrays)


def finished_record(build: CacheBuild) -> CacheRecord | None:
    """The record if the build is finished, else None."""
    record = open_record(build)
    if record is None or _incomplete(build.arrays) or _without_digests(build, record):
        return None
    return None if build.on_bad_image == "refuse" and record.left_out(build.largest) else record


def finish_build(
    build: CacheBuild, *, processes: int, progress: Callable[[int, int], None] | None
) -> tuple[CacheRecord, int]:
    """Build the missing arrays. Returns the record and the bytes of these arrays.

    InputError for bad or small images, and for a file that has changed since another array was built from it.
    on_bad_image "refuse" also decodes bad images again. The caller must hold the image set's lock.
    """
    record = open_record(build)
    if record is None:  # without a record the bad rows of the arrays are unknown
        record = new_record(build.record_path, len(build.index.table))
        for array in _complete_arrays(build):
            array.path.unlink()
    missing = _incomplete(build.arrays)
    try:
        _check_free_space(build, missing)
        if build.on_bad_image == "refuse":
            _retry_bad_images(build, record, processes)
        _resume_drafts(record, missing)
        _decode_missing(build, record, missing, processes, progress)
        _check_images(build, record)
        for array in missing:
            publish(array)
            del record.done[array.resolution]
            record.digests.pop(array.resolution, None)
        for array in _without_digests(build, record):
            record.digests[array.resolution] = digest_array(_complete(array))
        record.save([])
    except OSError as error:
        if error.errno not in _DISK_FULL_ERRORS:
            raise
        refusal = _disk_full(build, missing)
        for array in missing:
            array.draft.unlink(missing_ok=True)
        raise refusal from None
    return record, sum(array.size for array in missing)


def check_sample(build: CacheBuild, record: CacheRecord) -> None:
    """InputError where pixels have changed since they were decoded, in a sample of each array."""
    for array in build.arrays:
        rows = find_changed_rows(_complete(array), record.digests[array.resolution])
        if rows is not None:
            lines = build.index.table["line"].to_numpy()
            raise InputError(
                f"{array.path}: pixels of index lines {lines[rows.start]:,} to {lines[rows.stop - 1]:,} have changed "
                f"since they were decoded, so trials may have seen other images: check the disk, remove "
                f"{build.file_pattern} and prepare again"
            )


def open_array(array: CacheArray) -> np.ndarray | None:
    """The array, None if it is missing or incomplete. InputError if it cannot be read."""
    try:
        return open_complete(array)
    except OSError as error:
        raise InputError(f"{array.path}: cannot be read ({error.strerror}); {OTHER_FOLDER}") from None


def _complete(array: CacheArray) -> np.ndarray:
    pixels = open_array(array)
    assert pixels is not None
    return pixels


def _without_digests(build: CacheBuild, record: CacheRecord) -> list[CacheArray]:
    return [array for array in build.arrays if array.resolution not in record.digests]


def _incomplete(arrays: Sequence[CacheArray]) -> list[CacheArray]:
    return [array for array in arrays if open_array(array) is None]


def _complete_arrays(build: CacheBuild) -> list[CacheArray]:
    """The complete arrays of the image set in the folder, also those of other experiments."""
    folder, key, count = build.arrays[0].folder, build.arrays[0].key, build.arrays[0].count
    resolutions = [int(path.stem.split("-")[-1].removesuffix("px")) for path in folder.glob(f"{key}-*px.npy")]
    arrays = [CacheArray(folder, key, count, resolution) for resolution in resolutions]
    return [array for array in arrays if open_array(array) is not None]


def open_record(build: CacheBuild) -> CacheRecord | None:
    """The record of the image set, None if there is none. InputError if it cannot be read."""
    try:
        return read_record(build.record_path, len(build.index.table))
    except OSError as error:
        raise InputError(f"{build.record_path}: cannot be read ({error.strerror}); {OTHER_FOLDER}") from None


def _retry_bad_images(build: CacheBuild, record: CacheRecord, processes: int) -> None:
    """Decode the bad and the small images again into the complete arrays.

    Unfinished arrays get them with their missing chunks.
    """
    rows = sorted(record.left_out(build.largest))
    for chunks in record.done.values():
        chunks -= {row // _CHUNK for row in rows}
    complete = [(array, array.path) for array in _complete_arrays(build)]
    if not complete:
        for row in rows:
            record.forget(row)
        return
    if rows:
        record.digests.clear()  # before the arrays change: a crash must not leave digests of other pixels
        record.save([])
    jobs = [_job(build, rows[i : i + _CHUNK], complete) for i in range(0, len(rows), _CHUNK)]
    for job, report in run_jobs(jobs, processes=processes):
        for row in job.rows:
            record.forget(row)
        record.add(report)


def _check_images(build: CacheBuild, record: CacheRecord) -> None:
    """InputError for images that the build does not accept."""
    left_out, small = record.left_out(build.largest), record.small_below(build.largest)
    if build.on_bad_image == "refuse" and record.bad:
        raise unreadable(build.index, record.bad)
    if build.on_bad_image == "refuse" and small:
        raise too_small(build.index, small, build.largest)
    if len(left_out) == len(build.index.table):
        raise unreadable(build.index, left_out)


def _resume_drafts(record: CacheRecord, missing: list[CacheArray]) -> None:
    """Keep the drafts that the record lists; create the others."""
    new = []
    for array in missing:
        if array.path.exists():
            logger.warning("%s is incomplete: building it again", array.path)
        if not (array.draft.exists() and array.draft.stat().st_size == array.size and array.resolution in record.done):
            record.done[array.resolution] = set()
            new.append(array)
    record.save([])  # before the drafts: a crash must not leave a new draft with the old record
    for array in new:
        create_draft(array)


def _decode_missing(
    build: CacheBuild,
    record: CacheRecord,
    missing: list[CacheArray],
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode the chunks that an array lacks. Saves the record every 5 s and when the build ends or is interrupted."""
    count, jobs = len(build.index.table), []
    for first in range(0, count, _CHUNK):
        targets = [(array, array.draft) for array in missing if first // _CHUNK not in record.done[array.resolution]]
        if targets:
            jobs.append(_job(build, range(first, min(first + _CHUNK, count)), targets))
    done, saved = count - sum(len(job.rows) for job in jobs), -_SAVE_INTERVAL_S
    other = set[int]()
    try:
        for job, report in run_jobs(jobs, processes=processes):
            whole = report.files.keys() - report.unreadable.keys()
            other |= {row for row in whole if _differs(record.files[row], report.files[row])}
            if other:  # an array that exists already has the earlier picture
                continue
            record.add(report)
            for array, _ in job.targets:
                record.done[array.resolution].add(job.rows[0] // _CHUNK)
            if time.perf_counter() - saved > _SAVE_INTERVAL_S:
                record.save(missing)
                saved = time.perf_counter()
            done += len(job.rows)
            if progress:
                progress(done, count)
    finally:
        record.save(missing)
    if other:
        raise changed(build.index, other, build.file_pattern)


def _differs(known: np.ndarray, state: tuple[int, int, int]) -> bool:
    """True if the size or the CRC-32 of a file differs from the known ones. known: -1 for a file never decoded."""
    return known[0] >= 0 and (known[0], known[2]) != (state[0], state[2])


def _job(build: CacheBuild, rows: Sequence[int], targets: list[tuple[CacheArray, Path]]) -> DecodingJob:
    files = tuple(str(build.index.image_path(row)) for row in rows)
    return DecodingJob(tuple(rows), files, tuple(targets), build.fit)


def _check_free_space(build: CacheBuild, missing: list[CacheArray]) -> None:
    if shutil.disk_usage(build.arrays[0].folder).free < sum(array.size - _draft_bytes(array) for array in missing):
        raise _disk_full(build, missing)


def _draft_bytes(array: CacheArray) -> int:
    """Bytes of the disk that the draft already takes."""
    try:
        return min(array.draft.stat().st_blocks * 512, array.size)
    except FileNotFoundError:
        return 0


def _disk_full(build: CacheBuild, missing: list[CacheArray]) -> InputError:
    folder, count = build.arrays[0].folder, build.arrays[0].count
    resolutions = ", ".join(str(array.resolution) for array in missing)
    needed, free = sum(array.size for array in missing), shutil.disk_usage(folder).free
    return InputError(
        f"{folder}: no room for the image cache: {count:,} images at {resolutions} px take "
        f"{_format_bytes(needed)}, and {_format_bytes(free)} are free; free space, or {OTHER_FOLDER}"
    )


def _format_bytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
