"""The cache has the pixels of every image, or an error names the images that it cannot hold by line."""

import csv
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from acuity.objectives.errors import InputError
from acuity.objectives.images.cache import DepthCount, build_cache, cache_bytes
from acuity.objectives.images.digests import count_shards, digest_array, find_changed_rows
from acuity.objectives.images.faults import BadImage
from acuity.objectives.images.resizing import area_average, fit_square
from acuity.objectives.index.image_index import ImageIndex, read_index, take_rows
from acuity.objectives.training.interface import Hyperparameters, LabelledImages
from acuity.objectives.training.loader import BatchLoader, open_loaders
from acuity.objectives.training.train import train
from support.image_files import read_grey
from support.processes import find_processes
from support.waiting import wait_until


def write_set(folder: Path, images: list[Image.Image | bytes], kind: str = "png") -> ImageIndex:
    """An image set in NIH's format. A file name contains the patient, as in NIH's."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Index", "Finding Labels", "Patient ID"])
        for number, image in enumerate(images):
            name = f"{77_000_000 + number}_000.{kind}"
            writer.writerow([name, "Mass" if number % 2 else "No Finding", 77_000_000 + number])
            if isinstance(image, bytes):
                (folder / "images" / name).write_bytes(image)
            else:
                image.save(folder / "images" / name)
    return read_index(folder / "index.csv", images=folder / "images")


def noise(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def noises(count: int, side: int = 32) -> list[Image.Image | bytes]:
    return [Image.fromarray(noise(side, seed)) for seed in range(count)]


def block_mean(square: np.ndarray, resolution: int) -> np.ndarray:
    ratio = len(square) // resolution
    return square.reshape(resolution, ratio, resolution, ratio).mean(axis=(1, 3), dtype=np.float64)


def refusal(index: ImageIndex, folder: Path, resolutions: list[int]) -> InputError:
    with pytest.raises(InputError) as caught:
        build_cache(index, folder=folder, resolutions=resolutions, processes=1)
    message = str(caught.value)
    assert "\n" not in message
    assert "77000" not in message, "the message names a patient"
    assert caught.value.__cause__ is None
    assert not list(folder.glob("*.npy")), "a refused build left an array"
    return caught.value


def test_every_resolution_holds_the_images_in_the_indexs_order(tmp_path: Path) -> None:
    images = noises(150, side=96)  # more than one chunk for each of two processes
    index = write_set(tmp_path, images)
    seen: list[tuple[int, int]] = []
    cache = build_cache(
        index,
        folder=tmp_path / "cache",
        resolutions=[96, 16, 48],
        processes=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (150, 150)
    for resolution in (16, 48, 96):
        pixels = cache.open(resolution)
        assert pixels.shape == (150, resolution, resolution)
        assert pixels.dtype == np.uint8
        for row in range(150):
            assert np.abs(pixels[row] - block_mean(noise(96, row), resolution)).max() <= 1
    files = list((tmp_path / "cache").glob("*.npy"))
    assert sum(file.stat().st_size for file in files) == cache_bytes(index, [16, 48, 96])
    assert len(files) == 3
    assert cache.written_bytes == cache_bytes(index, [16, 48, 96])
    assert cache.bad == ()


def test_all_kinds_of_image_files_give_the_same_pixels(tmp_path: Path) -> None:
    grey = noise(64, 0)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    wide = np.zeros((64, 64), np.uint8)
    wide[16:48] = grey[16:48]
    index = write_set(
        tmp_path,
        [
            Image.fromarray(grey),
            Image.fromarray(grey).convert("RGBA"),
            Image.fromarray(grey).convert("P"),
            deep,
            Image.fromarray(grey[16:48]),
        ],
    )
    pixels = build_cache(index, folder=tmp_path / "cache", resolutions=[32], processes=1).open(32)
    for row, square in enumerate((grey, grey, grey, grey, wide)):
        assert np.abs(pixels[row] - block_mean(square, 32)).max() <= 1


def test_arrays_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(3))
    pixels = build_cache(index, folder=tmp_path / "cache", resolutions=[16], processes=1).open(16)
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1


def test_second_build_adds_only_what_is_missing(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(3))
    folder = tmp_path / "cache"
    build_cache(index, folder=folder, resolutions=[16], processes=1)
    (old,) = folder.glob("*.npy")
    before = old.stat()
    calls: list[tuple[int, int]] = []
    build_cache(index, folder=folder, resolutions=[16, 32], processes=1)
    cache = build_cache(index, folder=folder, resolutions=[16, 32], progress=lambda *reported: calls.append(reported))
    assert calls == [], "a complete cache was built again"
    assert cache.written_bytes == 0
    assert (old.stat().st_ino, old.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert cache.open(32).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:60], lambda _: b"", lambda data: data + b"x"]
)
def test_incomplete_array_is_built_again_and_never_read(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    index = write_set(tmp_path, noises(3))
    folder = tmp_path / "cache"
    cache = build_cache(index, folder=folder, resolutions=[16], processes=1)
    (path,) = folder.glob("*.npy")
    whole = path.read_bytes()

    path.write_bytes(damage(whole))
    with pytest.raises(InputError, match="no complete array of these 3 images at 16 px"):
        cache.open(16)
    build_cache(index, folder=folder, resolutions=[16], processes=1)
    assert path.read_bytes() == whole


def test_unreadable_images_are_named_together_by_line(tmp_path: Path) -> None:
    whole = cv2.imencode(".png", noise(64, 0))[1].tobytes()
    images: list[Image.Image | bytes] = [whole] * 100
    broken = [3, *range(70, 81)]
    for row in broken:
        images[row] = whole[:-400]
    images[3] = b"a web page"
    index = write_set(tmp_path, images)
    error = refusal(index, tmp_path / "cache", [16])
    assert str(error).startswith(
        "12 of 100 images cannot be read: index line 5 (not a PNG, JPEG or DICOM image), index line 72 (truncated), "
        "index line 73 (truncated), "
    )
    assert "index line 80 (truncated), and 2 more. Replace" in str(error)


def test_truncated_jpeg_is_not_filled_with_grey(tmp_path: Path) -> None:
    whole = cv2.imencode(".jpg", noise(128, 0))[1].tobytes()
    index = write_set(tmp_path, [whole, whole[: len(whole) // 2], whole[: len(whole) // 2] + b"\xff\xd9"], kind="jpg")
    message = str(refusal(index, tmp_path / "cache", [32]))
    assert "2 of 3 images cannot be read: index line 3 (truncated), index line 4 (Corrupt JPEG data" in message


def test_missing_images_are_refused_before_any_is_decoded(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(4))
    index.image_path(2).unlink()
    assert "index line 4: its file is not in" in str(refusal(index, tmp_path / "cache", [16]))
    shutil.rmtree(tmp_path / "images")
    assert "no such folder" in str(refusal(index, tmp_path / "cache", [16]))


def test_resolution_above_the_images_is_refused_with_the_largest_allowed(tmp_path: Path) -> None:
    index = write_set(tmp_path, [Image.fromarray(noise(64, 9)[:, :40]), *noises(4, side=48), *noises(2, side=128)])
    message = str(refusal(index, tmp_path / "cache", [16, 96]))
    assert message.startswith(
        "5 of 7 images are smaller than 96 px, and enlarging them adds nothing: index line 2 (64 px), index line 3 "
        "(48 px), index line 4 (48 px), index line 5 (48 px), index line 6 (48 px). Leave such images out with"
    )
    assert message.endswith("the largest resolution that all images allow is 48")
    build_cache(index, folder=tmp_path / "cache", resolutions=[16, 48], processes=1)


def test_one_small_image_among_many_is_found(tmp_path: Path) -> None:
    images = noises(130)
    images[1] = Image.fromarray(noise(24, 0))  # not in the sample that is checked first
    index = write_set(tmp_path, images)
    message = str(refusal(index, tmp_path / "cache", [32]))
    assert "1 of 130 images are smaller than 32 px, and enlarging them adds nothing: index line 3 (24 px)" in message
    assert message.endswith("all images allow is 24")


def test_smaller_copy_of_a_set_under_the_same_names_gets_its_own_arrays(tmp_path: Path) -> None:
    large = write_set(tmp_path / "large", noises(5, side=64))
    small = write_set(tmp_path / "small", noises(5, side=32))
    assert large.sha256 == small.sha256
    caches = [build_cache(index, folder=tmp_path / "cache", resolutions=[32], processes=1) for index in (large, small)]
    assert np.abs(caches[0].open(32)[2] - block_mean(noise(64, 2), 32)).max() <= 1
    np.testing.assert_array_equal(caches[1].open(32)[2], noise(32, 2))


def test_other_images_of_the_same_names_and_sizes_get_their_own_arrays(tmp_path: Path) -> None:
    keys = set()
    for seed in range(2):
        data = np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)
        picture = cv2.imencode(".png", data, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
        index = write_set(tmp_path, [picture] * 3)
        keys.add(build_cache(index, folder=tmp_path / "cache", resolutions=[16], processes=1).key)
    assert len(keys) == 2


def test_other_labels_use_the_same_arrays(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(3))
    build_cache(index, folder=tmp_path / "cache", resolutions=[16], processes=1)
    table = tmp_path / "index.csv"
    table.write_text(table.read_text().replace("Mass", "Nodule"))
    again = read_index(table, images=tmp_path / "images")
    assert again.sha256 != index.sha256
    assert build_cache(again, folder=tmp_path / "cache", resolutions=[16]).written_bytes == 0


def test_each_fit_has_its_own_arrays(tmp_path: Path) -> None:
    wide = noise(64, 0)[:32]
    index = write_set(tmp_path, [Image.fromarray(wide)] * 2)
    padded, stretched = (
        build_cache(index, folder=tmp_path / "cache", resolutions=[32], fit=fit, processes=1).open(32)
        for fit in ("pad", "stretch")
    )
    assert (padded[:, :8] == 0).all()
    expected = wide.reshape(32, 32, 2).mean(axis=2)
    assert np.abs(stretched[0] - expected).max() <= 1
    with pytest.raises(InputError, match="the largest resolution that all images allow is 32"):
        build_cache(index, folder=tmp_path / "cache", resolutions=[64], fit="stretch", processes=1)
    build_cache(index, folder=tmp_path / "cache", resolutions=[64], processes=1)


def test_full_disk_is_refused_with_figures_before_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write_set(tmp_path, noises(100))
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 80_000, 80_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    message = str(refusal(index, tmp_path / "cache", [16, 32]))
    assert "no room for the image cache: 100 images at 16, 32 px take 0.1 MiB, and 0.1 MiB are free" in message
    assert message.endswith('name another folder with [data] cache = "PATH"')
    build_cache(index, folder=tmp_path / "cache", resolutions=[16], processes=1)  # 25 KB: there is room for that


FULL_DISK = """
import shutil, sys
from pathlib import Path
from acuity.objectives.errors import InputError
from acuity.objectives.images.cache import build_cache
from acuity.objectives.index.image_index import read_index

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    index = read_index(folder / "index.csv", images=folder / "images")
    real = shutil.disk_usage
    # Another process fills the disk after the check.
    answers = [shutil._ntuple_diskusage(10**9, 0, 10**9)]
    shutil.disk_usage = lambda path: answers.pop() if answers else real(path)
    try:
        build_cache(index, folder=folder / "full", resolutions=[64])
    except InputError as error:
        print(error, [path.name for path in (folder / "full").iterdir() if path.suffix == ".partial"])
"""


def test_disk_that_fills_up_while_building_gives_the_same_error(tmp_path: Path) -> None:
    write_set(tmp_path, noises(120, side=64))
    (tmp_path / "full").mkdir()
    (tmp_path / "script.py").write_text(FULL_DISK)
    in_a_small_disk = 'mount -t tmpfs -o size=128k tmpfs "$1/full" && exec "$2" "$1/script.py" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", in_a_small_disk, "sh"]
    probe = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "full")]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs a kernel that lets users mount a small disk")
    done = subprocess.run(
        [*command, str(tmp_path), sys.executable], capture_output=True, text=True, check=True, env=with_this_tree()
    )
    assert "no room for the image cache: 120 images at 64 px take 0.5 MiB" in done.stdout
    assert done.stdout.endswith("[]\n"), "files were left on the full disk"


def test_folder_that_cannot_be_written_is_refused_with_the_option_to_change(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(2))
    for folder in (Path("/proc/cache"), tmp_path / "index.csv" / "cache"):  # neither can be made, not even by root
        with pytest.raises(InputError, match=r'\[data\] cache = "PATH"'):
            build_cache(index, folder=folder, resolutions=[16], processes=1)


BUILD = """
import sys
from pathlib import Path
from acuity.objectives.images.cache import build_cache
from acuity.objectives.index.image_index import read_index

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    index = read_index(folder / "index.csv", images=folder / "images")
    reported = []
    build_cache(index, folder=folder / "cache", resolutions=[16, 64], progress=lambda done, _: reported.append(done))
    print(bool(reported))
"""


def with_this_tree() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def start_build(folder: Path) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(BUILD)
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=with_this_tree(), start_new_session=True
    )


def processes_of_session(session: int) -> list[int]:
    """The running processes of a build, itself included. Zombies do not count."""

    def belongs(process: Path) -> bool:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return int(fields[3]) == session and fields[0] != "Z"

    return find_processes(belongs)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_build_leaves_no_process_and_no_array(tmp_path: Path, ending: signal.Signals) -> None:
    smooth = cv2.resize(noise(4, 0), (800, 800), interpolation=cv2.INTER_CUBIC)
    index = write_set(tmp_path, [cv2.imencode(".png", smooth)[1].tobytes()] * 320)
    cache = tmp_path / "cache"
    build = start_build(tmp_path)
    while not (done := re.findall(r'"16": \[(\d+)', "".join(record.read_text() for record in cache.glob("*.json")))):
        assert build.poll() is None, "the build ended before it could be interrupted"
        time.sleep(0.01)
    if ending == signal.SIGINT:
        os.killpg(build.pid, ending)  # Ctrl-C reaches every process of the terminal
    else:
        build.send_signal(ending)
    errors = build.communicate(timeout=60)[1]
    assert "decode_job" not in errors, "a decoding process handled Ctrl-C"
    assert build.returncode != 0
    wait_until(lambda: not processes_of_session(build.pid))  # no decoding process outlives its parent
    assert not list(cache.glob("*.npy"))
    index.image_path(int(done[0]) * 32 + 2).write_bytes(b"never read again")
    reported: list[int] = []
    built = build_cache(index, folder=cache, resolutions=[16, 64], progress=lambda done, _: reported.append(done))
    assert reported[0] > 32, "the build started again at 0"
    assert reported[-1] == 320
    assert {path.suffix for path in cache.iterdir()} == {".npy", ".lock", ".json", ".files"}
    for resolution in (16, 64):
        assert (built.open(resolution) == built.open(resolution)[0]).all(), "a row was lost"
    assert built.bad == ()


def test_two_builders_at_once_decode_once(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(60, side=64))
    builds = [start_build(tmp_path) for _ in range(2)]
    reported = [build.communicate(timeout=60)[0].strip() for build in builds]
    assert [build.returncode for build in builds] == [0, 0]
    assert sorted(reported) == ["False", "True"], "both processes built the cache, or none"
    pixels = build_cache(index, folder=tmp_path / "cache", resolutions=[64]).open(64)
    np.testing.assert_array_equal(pixels[59], noise(64, 59))


def test_decoding_processes_that_die_end_the_build(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(400))

    def kill_both() -> None:
        """Kill both while they start, before an image is decoded."""
        wait_until(lambda: len(multiprocessing.active_children()) == 2)
        for child in multiprocessing.active_children():
            child.kill()

    killer = threading.Thread(target=kill_both)
    killer.start()
    with pytest.raises(InputError, match="a process that decodes images was killed"):
        build_cache(index, folder=tmp_path / "cache", resolutions=[16], processes=2)
    killer.join()
    assert not list((tmp_path / "cache").glob("*.npy"))
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[16], processes=1)
    assert np.abs(cache.open(16)[399] - block_mean(noise(32, 399), 16)).max() <= 1


def broken_set(folder: Path, count: int = 70, broken: tuple[int, ...] = (3, 40, 41)) -> ImageIndex:
    images = noises(count)
    for row in broken:
        images[row] = b"a web page"
    return write_set(folder, images)


def test_bad_images_may_be_dropped_and_are_counted(tmp_path: Path) -> None:
    index = broken_set(tmp_path)
    index.image_path(5).unlink()
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[16, 32], on_bad_image="drop", processes=1)
    assert cache.bad == (
        BadImage(row=3, line=5, reason="not a PNG, JPEG or DICOM image"),
        BadImage(row=5, line=7, reason="no such file or directory"),
        BadImage(row=40, line=42, reason="not a PNG, JPEG or DICOM image"),
        BadImage(row=41, line=43, reason="not a PNG, JPEG or DICOM image"),
    )
    for row in range(70):
        if row not in (3, 5, 40, 41):
            np.testing.assert_array_equal(cache.open(32)[row], noise(32, row))
    again = build_cache(index, folder=tmp_path / "cache", resolutions=[32], on_bad_image="drop")
    assert again.bad == cache.bad
    assert again.written_bytes == 0
    with pytest.raises(InputError, match="1 of 70 files missing in all"):
        build_cache(index, folder=tmp_path / "cache", resolutions=[32])


def test_arrays_without_their_record_are_not_trusted(tmp_path: Path) -> None:
    index = broken_set(tmp_path)
    build_cache(index, folder=tmp_path / "cache", resolutions=[16], on_bad_image="drop", processes=1)
    (record,) = (tmp_path / "cache").glob("*.json")
    for damage in (record.unlink, lambda: record.write_text('{"bad": {')):
        damage()
        cache = build_cache(index, folder=tmp_path / "cache", resolutions=[16], on_bad_image="drop", processes=1)
        assert [image.row for image in cache.bad] == [3, 40, 41]
        assert cache.written_bytes


def test_refused_build_resumes_after_the_images_are_repaired(tmp_path: Path) -> None:
    index = broken_set(tmp_path, count=200, broken=(4, 40))
    assert "2 of 200" in str(refusal(index, tmp_path / "cache", [16, 32]))
    Image.fromarray(noise(32, 4)).save(index.image_path(4))
    index.image_path(100).write_bytes(b"never read again")
    assert "1 of 200 images cannot be read: index line 42" in str(refusal(index, tmp_path / "cache", [16, 32]))
    Image.fromarray(noise(32, 40)).save(index.image_path(40))
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[16, 32], processes=1)
    for row in (4, 40, 100):
        np.testing.assert_array_equal(cache.open(32)[row], noise(32, row))


def test_repaired_images_are_decoded_and_the_others_are_not_decoded_again(tmp_path: Path) -> None:
    """After a refused build and after a build that dropped them, in the arrays of all experiments."""
    index = broken_set(tmp_path, count=200, broken=(4, 40))  # neither is in the sample that identifies the image set
    folder = tmp_path / "cache"
    refusal(index, folder, [16])
    dropped = build_cache(index, folder=folder, resolutions=[16], on_bad_image="drop", processes=1)
    assert len(dropped.bad) == 2
    for row in (4, 40):
        Image.fromarray(noise(32, row)).save(index.image_path(row))
    index.image_path(100).write_bytes(b"never read again")
    kept = build_cache(index, folder=folder, resolutions=[16], on_bad_image="drop")
    assert kept.bad == dropped.bad, "an experiment's images changed while it ran"
    cache = build_cache(index, folder=folder, resolutions=[16], processes=1)
    assert cache.bad == ()
    for row in (4, 40, 100):
        assert np.abs(cache.open(16)[row] - block_mean(noise(32, row), 16)).max() <= 1


def test_image_that_went_bad_is_bad_at_every_resolution(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(200))
    build_cache(index, folder=tmp_path / "cache", resolutions=[16], processes=1)
    index.image_path(4).write_bytes(b"a web page")
    with pytest.raises(InputError, match="1 of 200 images cannot be read"):
        build_cache(index, folder=tmp_path / "cache", resolutions=[32], processes=1)
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[32], on_bad_image="drop", processes=1)
    alike = build_cache(index, folder=tmp_path / "cache", resolutions=[16], on_bad_image="drop", processes=1)
    assert [image.row for image in cache.bad] == [image.row for image in alike.bad] == [4]


def test_set_of_bad_images_alone_is_refused(tmp_path: Path) -> None:
    index = broken_set(tmp_path, count=3, broken=(0, 1, 2))
    with pytest.raises(InputError, match="3 of 3 images cannot be read"):
        build_cache(index, folder=tmp_path / "cache", resolutions=[16], on_bad_image="drop", processes=1)


def test_dicom_without_pydicom_is_refused_and_not_dropped(tmp_path: Path) -> None:
    index = write_set(tmp_path, [bytes(128) + b"DICM" + bytes(100)] * 3)
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "pydicom.py").write_text("raise ImportError")
    script = (
        "from pathlib import Path; import sys; sys.path.insert(0, sys.argv[2])\n"
        "from acuity.objectives.images.cache import build_cache\n"
        "from acuity.objectives.index.image_index import read_index\n"
        "folder = Path(sys.argv[1]); index = read_index(folder / 'index.csv', images=folder / 'images')\n"
        "build_cache(index, folder=folder / 'cache', resolutions=[16], on_bad_image='drop', processes=1)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "without")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=with_this_tree())
    assert "need pydicom to be read: pip install 'acuity-hpo[dicom]'" in done.stderr
    assert len(index.table) == 3


def test_nihs_folders_are_found(tmp_path: Path) -> None:
    flat = write_set(tmp_path, noises(6))
    for row in range(6):
        folder = tmp_path / "images" / f"images_{row % 3 + 1:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        flat.image_path(row).rename(folder / flat.image_path(row).name)
    index = read_index(tmp_path / "index.csv", images=tmp_path / "images")
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[32], processes=1)
    for row in range(6):
        np.testing.assert_array_equal(cache.open(32)[row], noise(32, row))


@pytest.mark.parametrize("source", ["drawn", "nih"])
def test_training_sees_the_same_from_the_cache_and_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """For the same seed every batch is equal bit for bit, whether from the cache or decoded from the files."""
    if source == "drawn":
        index = write_set(tmp_path, noises(24, side=64))
    else:
        folder = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / "nih-cxr-1024"
        if not folder.exists():
            pytest.skip(f"needs NIH's images: {folder} is not there")
        whole = read_index(folder / "Data_Entry.csv", images=folder / "images")
        index = take_rows(whole, np.arange(0, 240, 10))
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[32], processes=1)
    rows = np.arange(24)
    data = LabelledImages(
        images=cache.open(32),
        targets=(rows % 2).astype(np.float32),
        patients=rows,
        training=rows[:16],
        validation=rows[16:],
    )

    def decode(row: int) -> np.ndarray:
        return area_average(fit_square(read_grey(index.image_path(row)), "pad"), 32)

    def from_files(_: np.ndarray, *parts: np.ndarray, **__: object) -> list[BatchLoader]:
        def gather(rows: np.ndarray, positions: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(np.stack([decode(row) for row in rows[positions]])).unsqueeze(1)

        return [partial(map, partial(gather, rows)) for rows in parts]

    def run(feeds: Callable[..., list[BatchLoader]]) -> tuple[list[torch.Tensor], np.ndarray]:
        batches: list[torch.Tensor] = []

        def open_and_watch(*arguments: Any, **options: Any) -> list[BatchLoader]:
            def watched(inner: BatchLoader, positions: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
                for batch in inner(positions):
                    batches.append(batch.clone())
                    yield batch

            return [partial(watched, feed) for feed in feeds(*arguments, **options)]

        monkeypatch.setattr("acuity.objectives.training.train.open_loaders", open_and_watch)
        task = Hyperparameters("test_resnet", resolution=32, batch_size=4, learning_rate=1e-3, epochs=2)
        outcome = train(task, data, seed=7, device=torch.device("cpu"), report=lambda *_: False)
        return batches, outcome.scores

    cached, decoded = run(open_loaders), run(from_files)
    assert len(cached[0]) == len(decoded[0]) >= 8
    assert all(torch.equal(*pair) for pair in zip(cached[0], decoded[0], strict=True))
    np.testing.assert_array_equal(cached[1], decoded[1])


def test_small_images_are_dropped_from_the_resolutions_above_them_alone(tmp_path: Path) -> None:
    images = noises(130)
    images[1] = Image.fromarray(noise(24, 0))
    index = write_set(tmp_path, images)
    folder = tmp_path / "cache"
    cache = build_cache(index, folder=folder, resolutions=[16, 32], on_bad_image="drop", processes=1)
    assert cache.bad == (BadImage(row=1, line=3, reason="24 px, smaller than the largest resolution of 32 px"),)
    np.testing.assert_array_equal(cache.open(32)[2], noise(32, 2))
    small = build_cache(index, folder=folder, resolutions=[16], on_bad_image="drop")
    assert (cache.small, small.small) == (1, 0)
    assert (small.bad, small.written_bytes) == ((), 0)
    assert np.abs(small.open(16)[1] - area_average(noise(24, 0), 16).astype(int)).max() == 0
    assert build_cache(index, folder=folder, resolutions=[16]).bad == ()
    with pytest.raises(InputError, match="1 of 130 images are smaller than 32 px"):
        build_cache(index, folder=folder, resolutions=[16, 32])
    Image.fromarray(noise(32, 1)).save(index.image_path(1))
    np.testing.assert_array_equal(
        build_cache(index, folder=folder, resolutions=[16, 32], processes=1).open(32)[1], noise(32, 1)
    )


def test_image_that_shows_nothing_is_bad(tmp_path: Path) -> None:
    images = noises(40)
    images[7] = Image.new("L", (32, 32), 255)
    index = write_set(tmp_path, images)
    assert "index line 9 (shows nothing: every pixel has the same grey)" in str(
        refusal(index, tmp_path / "cache", [16])
    )
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[16], on_bad_image="drop", processes=1)
    assert [image.line for image in cache.bad] == [9]


def test_exchanged_files_are_found_by_name_of_their_line(tmp_path: Path) -> None:
    """Row 100 is not in the sample that identifies the image set."""
    index = write_set(tmp_path, noises(200))
    folder = tmp_path / "cache"
    build_cache(index, folder=folder, resolutions=[16], check_files=True, processes=1)
    earlier = index.image_path(100).read_bytes()
    other = cv2.imencode(".png", noise(32, 7), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    state = index.image_path(100).stat()
    for changed in (other, earlier[:-20] + b"\x07" + earlier[-19:]):  # of another size, and of the same size
        index.image_path(100).write_bytes(changed)
        assert build_cache(index, folder=folder, resolutions=[16]).written_bytes == 0, "a worker compares the sample"
        with pytest.raises(InputError, match=r"1 of 200 files have another content than .*: index line 102") as caught:
            build_cache(index, folder=folder, resolutions=[16], check_files=True)
        assert "77000" not in str(caught.value)
    index.image_path(100).write_bytes(other)
    with pytest.raises(InputError, match="1 of 200 files have another content"):  # never two pictures under one row
        build_cache(index, folder=folder, resolutions=[16, 32], processes=1)
    pattern = re.search(r"\(rm (.*)\*\)", str(caught.value))
    assert pattern is not None
    index.image_path(100).write_bytes(earlier)
    os.utime(index.image_path(100), ns=(state.st_mtime_ns + 10**9,) * 2)  # copied: another time, the same picture
    for _ in range(2):
        assert build_cache(index, folder=folder, resolutions=[16], check_files=True).written_bytes == 0
    index.image_path(100).write_bytes(other)
    for path in folder.glob(Path(pattern[1]).name + "*"):
        path.unlink()
    cache = build_cache(index, folder=folder, resolutions=[16, 32], check_files=True, processes=1)
    np.testing.assert_array_equal(cache.open(32)[100], noise(32, 7))


def test_depths_of_deep_images_are_counted(tmp_path: Path) -> None:
    deep = [Image.fromarray(noise(32, seed).astype(np.uint16) << shift) for seed, shift in ((0, 4), (1, 6), (2, 4))]
    index = write_set(tmp_path, [*noises(2), *deep])
    for resolutions in ([16], [16, 32], [32]):
        cache = build_cache(index, folder=tmp_path / "cache", resolutions=resolutions, processes=1)
        assert cache.depths == (DepthCount(12, 2, lines=(4, 6)), DepthCount(14, 1, lines=(5,)))


def test_named_pipe_does_not_hang_the_build(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(40))
    index.image_path(0).unlink()
    os.mkfifo(index.image_path(0))
    cache = build_cache(index, folder=tmp_path / "cache", resolutions=[16], on_bad_image="drop", processes=1)
    assert cache.bad == (BadImage(row=0, line=2, reason="not a regular file"),)


def test_changed_pixels_are_found_and_named(tmp_path: Path) -> None:
    index = write_set(tmp_path, noises(40))
    folder = tmp_path / "cache"
    cache = build_cache(index, folder=folder, resolutions=[16, 32], processes=1)
    assert build_cache(index, folder=folder, resolutions=[16, 32]).written_bytes == 0
    array = folder / f"{cache.key}-32px.npy"
    whole = array.read_bytes()
    array.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"pixels of index lines 2 to 41 have changed since they were decoded"):
        build_cache(index, folder=folder, resolutions=[16, 32])
    array.write_bytes(whole)
    assert build_cache(index, folder=folder, resolutions=[32]).written_bytes == 0


@pytest.mark.parametrize("suffix", ["json", "files"])
def test_changed_record_is_not_trusted(tmp_path: Path, suffix: str) -> None:
    """A record that hides a bad image would let its black row into training."""
    index = broken_set(tmp_path)
    folder = tmp_path / "cache"
    first = build_cache(index, folder=folder, resolutions=[16], on_bad_image="drop", processes=1)
    (record,) = folder.glob(f"*.{suffix}")
    changed = bytearray(record.read_bytes())
    position = changed.index(b'"41"') + 1 if suffix == "json" else len(changed) // 2
    changed[position] ^= 1
    record.write_bytes(bytes(changed))
    again = build_cache(index, folder=folder, resolutions=[16], on_bad_image="drop", processes=1)
    assert again.written_bytes
    assert again.bad == first.bad


def test_each_changed_shard_is_found() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4096, 4096), dtype=np.uint8)  # a shard is an image
    digests = digest_array(pixels)
    assert count_shards(pixels) == len(set(digests)) == 5
    pixels[3, 7, 9] ^= 1
    found = {find_changed_rows(pixels, digests) for _ in range(20)}
    assert found <= {None, range(3, 4)}
    assert range(3, 4) in found
    assert find_changed_rows(pixels, digests[:-1]) == range(5)
