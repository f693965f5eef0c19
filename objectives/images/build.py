"""A build of the cache: what there is left to decode, and how it goes on after it was killed."""

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
from acuity.objectives.images.arrays import CacheArray, Job, begin, open_whole, publish, run_jobs
from acuity.objectives.images.decoding import Fit
from acuity.objectives.images.faults import too_small, unreadable
from acuity.objectives.images.record import CacheRecord, read_record
from acuity.objectives.index.image_index import ImageIndex

logger = logging.getLogger(__name__)
OnBadImage = Literal["refuse", "drop"]
"""What becomes of an image that cannot be read: the whole set is refused, or that image is left out of everything."""
WAY_OUT = 'name another folder with [data] cache = "PATH"'
_CHUNK = 32
"""Images a job: what a killed build has to do again, and the step of the progress bar."""
_SAVE_S = 5.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class CacheBuild:
    """What was asked for."""

    index: ImageIndex
    arrays: list[CacheArray]
    fit: Fit
    on_bad_image: OnBadImage

    @property
    def record_path(self) -> Path:
        return self.arrays[0].folder / f"{self.arrays[0].key}.json"


def settled(build: CacheBuild) -> CacheRecord | None:
    """The record, if nothing is left to do."""
    record = _read_record(build)
    if record is None or _not_whole(build.arrays) or (record.bad and build.on_bad_image == "refuse"):
        return None
    return record


def finish(build: CacheBuild, processes: int, progress: Callable[[int, int], None] | None) -> tuple[CacheRecord, int]:
    """Finish what is not whole, and try bad images again if they are to be refused; also returns the bytes finished.

    For a process that holds the image set's lock.
    """
    record = _read_record(build)
    if record is None:  # without it no array says which of its rows are images
        record = CacheRecord(build.record_path)
        for array in _all_whole(build):
            array.path.unlink()
    missing = _not_whole(build.arrays)
    try:
        _check_room(build, missing)
        if build.on_bad_image == "refuse":
            _retry_bad(build, record, processes)
        _take_up_drafts(record, missing)
        _decode_rest(build, record, missing, processes, progress)
        if record.bad and (build.on_bad_image == "refuse" or len(record.bad) == len(build.index.table)):
            raise unreadable(build.index, record.bad)
        for array in missing:
            publish(array)
            del record.done[array.resolution]
        record.save([])
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        refusal = _no_room(build, missing)
        for array in missing:
            array.draft.unlink(missing_ok=True)
        raise refusal from None
    return record, sum(array.size for array in missing)


def open_array(array: CacheArray) -> np.ndarray | None:
    """The array, None if it is not whole. InputError if it cannot be read."""
    try:
        return open_whole(array)
    except OSError as error:
        raise InputError(f"{array.path}: cannot be read ({error.strerror}); {WAY_OUT}") from None


def _not_whole(arrays: Sequence[CacheArray]) -> list[CacheArray]:
    return [array for array in arrays if open_array(array) is None]


def _all_whole(build: CacheBuild) -> list[CacheArray]:
    """The whole arrays of the set, at whatever resolution an experiment asked for."""
    folder, key, count = build.arrays[0].folder, build.arrays[0].key, build.arrays[0].count
    sides = [int(path.stem.split("-")[-1].removesuffix("px")) for path in folder.glob(f"{key}-*px.npy")]
    arrays = [CacheArray(folder, key, count, side) for side in sides]
    return [array for array in arrays if open_array(array) is not None]


def _read_record(build: CacheBuild) -> CacheRecord | None:
    try:
        return read_record(build.record_path)
    except OSError as error:
        raise InputError(f"{build.record_path}: cannot be read ({error.strerror}); {WAY_OUT}") from None


def _retry_bad(build: CacheBuild, record: CacheRecord, processes: int) -> None:
    """Whole files may have been put in the place of bad ones: unfinished arrays get theirs with the rest."""
    for chunks in record.done.values():
        chunks -= {row // _CHUNK for row in record.bad}
    whole = [(array, array.path) for array in _all_whole(build)]
    rows, record.bad = sorted(record.bad), record.bad if whole else {}
    jobs = [_job(build, rows[i : i + _CHUNK], whole) for i in range(0, len(rows), _CHUNK)] if whole else []
    for job, faults in run_jobs(jobs, processes=processes):
        for row in job.rows:
            del record.bad[row]
        record.bad |= faults.unreadable | {row: f"only {side} px" for row, side in faults.small.items()}


def _take_up_drafts(record: CacheRecord, missing: list[CacheArray]) -> None:
    """Keep what the record says of whole drafts; begin the others."""
    new = []
    for array in missing:
        if array.path.exists():
            logger.warning("%s is not whole: building it again", array.path)
        if not (array.draft.exists() and array.draft.stat().st_size == array.size and array.resolution in record.done):
            record.done[array.resolution] = set()
            new.append(array)
    record.save([])  # before a draft is made, so that no crash leaves an empty one with a record of a full one
    for array in new:
        begin(array)


def _decode_rest(
    build: CacheBuild,
    record: CacheRecord,
    missing: list[CacheArray],
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode each chunk of images that an array lacks, saving the record every few seconds and when interrupted."""
    count, jobs = len(build.index.table), []
    for first in range(0, count, _CHUNK):
        lacking = [(array, array.draft) for array in missing if first // _CHUNK not in record.done[array.resolution]]
        if lacking:
            jobs.append(_job(build, range(first, min(first + _CHUNK, count)), lacking))
    done, saved, small = count - sum(len(job.rows) for job in jobs), -_SAVE_S, dict[int, int]()
    try:
        for job, faults in run_jobs(jobs, processes=processes):
            small |= faults.small
            record.bad |= faults.unreadable
            if not faults.small:
                for array, _ in job.targets:
                    record.done[array.resolution].add(job.rows[0] // _CHUNK)
            if time.perf_counter() - saved > _SAVE_S:
                record.save(missing)
                saved = time.perf_counter()
            done += len(job.rows)
            if progress:
                progress(done, count)
    finally:
        record.save(missing)
    if small:
        raise too_small(build.index, small, max(array.resolution for array in build.arrays))


def _job(build: CacheBuild, rows: Sequence[int], targets: list[tuple[CacheArray, Path]]) -> Job:
    files = tuple(str(build.index.image_path(row)) for row in rows)
    return Job(tuple(rows), files, tuple(targets), build.fit)


def _check_room(build: CacheBuild, missing: list[CacheArray]) -> None:
    if shutil.disk_usage(build.arrays[0].folder).free < sum(array.size - _drafted(array) for array in missing):
        raise _no_room(build, missing)


def _drafted(array: CacheArray) -> int:
    """Bytes of the disk that an interrupted build already filled."""
    try:
        return min(array.draft.stat().st_blocks * 512, array.size)
    except FileNotFoundError:
        return 0


def _no_room(build: CacheBuild, missing: list[CacheArray]) -> InputError:
    folder, count = build.arrays[0].folder, build.arrays[0].count
    sides = ", ".join(str(array.resolution) for array in missing)
    needed, free = sum(array.size for array in missing), shutil.disk_usage(folder).free
    return InputError(
        f"{folder}: no room for the image cache: {count:,} images at {sides} px take {_gib(needed)}, and "
        f"{_gib(free)} are free; free some, or {WAY_OUT}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
