"""Claim: to prepare an image takes at most 1.2 times (fastest decode + each resize) of a core, in flat memory.

The nine resolutions of the paper, on nih-cxr-1024 (ACUITY_NIH_DIR) as JPEG and written back as the PNG that NIH ships.
Decoders: Pillow, OpenCV, torchvision.io and, where it is installed, simplejpeg, in turn on each image. Times are CPU
time, since other programs share the cores: of the cache's job in one process, and of whole builds of 1,100 images
beside processes that only decode and resize. Memory: 1,100 images against 11,000 (ten links to each file). And the
second `acuity prepare`, start of Python included. Argument: images for what runs in one process (default 200).
"""

import csv
import importlib.util
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from acuity.objectives.images.arrays import CacheArray, Job, _decode, begin
from acuity.objectives.images.cache import build_cache, cache_bytes
from acuity.objectives.index.image_index import read_index

RESOLUTIONS = (32, 64, 128, 224, 256, 320, 448, 512, 600)
ROUNDS = 5
SOURCE = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / "nih-cxr-1024"
EXPERIMENT = """\
name = "prepare"
labels = ["Pneumonia"]
[data]
index = "index.csv"
images = "images"
cache = "cache"
[search]
resolutions = [32, 64, 128, 224, 256, 320, 448, 512, 600]
architectures = ["test_resnet"]
trials = 54
[training]
epochs = 1
"""


def main() -> None:
    """Measure, print the tables and one line of JSON."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    cv2.setNumThreads(1)
    # Not in memory, where a cache of 11,000 images would not fit, but beside what is measured: a disk's page cache.
    with tempfile.TemporaryDirectory(dir=os.environ.get("ACUITY_BENCH_DIR")) as temporary:
        folder = Path(temporary)
        files = sorted((SOURCE / "images").iterdir())[:images]
        kinds = {"png": _as_png(files, folder / "png"), "jpeg": files}
        decoders = {kind: _time_decoders(paths) for kind, paths in kinds.items()}
        goals = []
        for kind, paths in kinds.items():
            ratios, parts = _time_image(paths, folder / kind)
            print(f"{kind}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in parts.items()))
            goals.append(_goal(f"image_{kind}", ratios, "<= 1.2", max(ratios) <= 1.2) | {"ms": parts})
        small, large = (_write_set(folder / str(count), count) for count in (1_100, 11_000))
        ratios, parts = _time_builds(small)
        print("whole builds: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in parts.items()), flush=True)
        goals.append(_goal("image_jpeg_in_a_whole_build", ratios, "<= 1.2", max(ratios) <= 1.2) | {"ms": parts})
        memory = {count: _in_a_process("--memory", set_) for count, set_ in ((1_100, small), (11_000, large))}
        print(f"builds: {memory}", flush=True)
        growth = memory[11_000]["peak_mib"] - memory[1_100]["peak_mib"]
        goals.append(_goal("memory_growth_mib_1100_to_11000", [growth], "<= 50", growth <= 50))
        _second_prepare(small)  # writes the split
        second = [_second_prepare(small) for _ in range(ROUNDS)]
        wall, cpu = (list(column) for column in zip(*second, strict=True))
        cpu_s = {"cpu_s": round(statistics.median(cpu), 2)}
        goals.append(_goal("second_prepare_s", wall, "< 2", statistics.median(wall) < 2) | cpu_s)
    for goal in goals:
        print(f"{goal['name']:34} {goal['value']:7.2f} ({goal['low']:.2f} to {goal['high']:.2f})  goal {goal['goal']}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "benchmark": "prepare",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, shared with other programs",
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in ("opencv-python-headless", "pillow", "torchvision", "numpy")},
        "n": images,
        "resolutions": RESOLUTIONS,
        "decoders_ms": decoders,
        "memory": memory,
        "goals": goals,
    }
    print(json.dumps(result))


def _as_png(files: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{file.stem}.png" for file in files]
    for file, path in zip(files, paths, strict=True):
        Image.open(file).save(path)
    return paths


def _decoders() -> dict[str, Callable[[bytes], object]]:
    """Bytes -> grey pixels, on one thread."""
    import torch
    import torchvision.io

    torch.set_num_threads(1)
    grey = torchvision.io.ImageReadMode.GRAY
    decoders: dict[str, Callable[[bytes], object]] = {
        "pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("L")),
        "opencv": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH),
        "torchvision": lambda data: torchvision.io.decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), grey
        ),
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        decoders["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "GRAY") if data[:1] == b"\xff" else None
    return decoders


def _time_decoders(files: list[Path]) -> dict[str, float]:
    """Median over the images of the best of three, in ms."""
    taken: dict[str, list[float]] = {}
    for data in (file.read_bytes() for file in files):
        for name, decode in _decoders().items():
            if decode(data) is not None:
                taken.setdefault(name, []).append(min(_cpu(lambda: decode(data)) for _ in range(3)))  # noqa: B023
    table = {name: round(statistics.median(ms), 2) for name, ms in taken.items()}
    print(f"{files[0].suffix} decode: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in table.items()), flush=True)
    return table


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1000


def _time_image(files: list[Path], folder: Path) -> tuple[list[float], dict[str, float]]:
    """Ratio of the cache's own job to its bare parts, a round at a time, and the median parts in ms an image."""
    folder.mkdir(exist_ok=True)
    arrays = [CacheArray(folder, "image", len(files), resolution) for resolution in RESOLUTIONS]
    for array in arrays:
        begin(array)
    targets = tuple((array, array.draft) for array in arrays)
    decode = _decoders()["opencv"]
    chunks = [range(i, min(i + 32, len(files))) for i in range(0, len(files), 32)]
    ours: list[float] = []
    floors: list[tuple[float, float]] = []
    for warm in range(ROUNDS + 1):
        whole = decoding = resizing = 0.0
        for rows in chunks:
            paths = [files[row] for row in rows]
            job = Job(tuple(rows), tuple(map(str, paths)), targets, "pad")
            whole += _cpu(lambda: _decode(job))  # noqa: B023
            data = [path.read_bytes() for path in paths]
            decoding += _cpu(lambda: [decode(one) for one in data])  # noqa: B023
            images = [np.asarray(decode(one)) for one in data]
            resizing += _cpu(lambda: [_resize(image, side) for image in images for side in RESOLUTIONS])  # noqa: B023
        if warm:
            ours.append(whole / len(files))
            floors.append((decoding / len(files), resizing / len(files)))
    for array in arrays:
        array.draft.unlink()
    ratios = [own / sum(floor) for own, floor in zip(ours, floors, strict=True)]
    decoding, resizing = (statistics.median(part) for part in zip(*floors, strict=True))
    parts = {"acuity": statistics.median(ours), "fastest decode": decoding, "resizes": resizing}
    return ratios, {name: round(ms, 2) for name, ms in parts.items()}


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def _write_set(folder: Path, count: int) -> Path:
    """An image set of links to the real files, each as often as it takes."""
    (folder / "images").mkdir(parents=True)
    with (SOURCE / "Data_Entry.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number in range(count):
            row = rows[number % len(rows)]
            name = f"{number // len(rows)}-{row[0]}"
            (folder / "images" / name).symlink_to((SOURCE / "images" / row[0]).resolve())
            writer.writerow([name, *row[1:]])
    (folder / "experiment.toml").write_text(EXPERIMENT)
    return folder


def _time_builds(folder: Path) -> tuple[list[float], dict[str, float]]:
    """Ratio of whole builds to bare decoding and resizing in as many processes, in turn; medians in ms an image."""
    taken = [(_in_a_process("--build", folder), _in_a_process("--floor", folder)) for _ in range(3)]
    ours, floors = ([run["cpu_s"] / 1.1 for run in runs] for runs in zip(*taken, strict=True))
    parts = {"acuity": round(statistics.median(ours), 2), "decode and resize": round(statistics.median(floors), 2)}
    return [own / floor for own, floor in zip(ours, floors, strict=True)], parts


def _in_a_process(what: str, folder: Path) -> dict[str, float]:
    said = subprocess.run(
        [sys.executable, "-P", __file__, what, str(folder)], capture_output=True, text=True, check=True
    )
    run: dict[str, float] = json.loads(said.stdout)
    return run


def _run(what: str, folder: Path) -> None:
    """One process's task: --build and --floor tell CPU seconds of it and its children, --memory the most they held."""
    index = read_index(folder / "index.csv", images=folder / "images")
    files = [str(index.image_path(row)) for row in range(len(index.table))]
    peak, over = [0], threading.Event()
    watch = threading.Thread(target=_watch_memory, args=(peak, over))
    before = resource.getrusage(resource.RUSAGE_SELF)
    if what == "--floor":
        with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
            pool.map(_decode_and_resize, files, chunksize=32)
            pool.close()
            pool.join()
    else:
        if what == "--memory":
            watch.start()
        for path in (folder / "cache").glob("*"):
            path.unlink()
        cache = build_cache(index, folder=folder / "cache", resolutions=RESOLUTIONS)
        assert cache.written_bytes == cache_bytes(index, RESOLUTIONS)
    over.set()
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime + children.ru_utime + children.ru_stime
    told = {"cpu_s": round(cpu_s, 2)} if what != "--memory" else {"peak_mib": round(peak[0] / 2**20)}
    print(json.dumps(told))


def _decode_and_resize(file: str) -> None:
    cv2.setNumThreads(1)
    data = np.frombuffer(Path(file).read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    for side in RESOLUTIONS:
        _resize(image, side)


def _watch_memory(peak: list[int], over: threading.Event) -> None:
    """Private memory of this process and its children, twice a second; the arrays' own pages are the kernel's."""
    import psutil

    me = psutil.Process()
    while not over.wait(0.5):
        total = 0
        for process in (me, *me.children()):
            try:
                total += process.memory_full_info().uss
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], total)


def _second_prepare(folder: Path) -> tuple[float, float]:
    """Seconds of the whole command, interpreter and imports included: by the clock, and of a core."""
    command = [sys.executable, "-m", "acuity", "prepare", str(folder / "experiment.toml")]
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.perf_counter() - began, os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def _goal(name: str, values: list[float], goal: str, met: bool) -> dict[str, object]:
    low, value, high = min(values), statistics.median(values), max(values)
    return {
        "name": name,
        "value": round(value, 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "goal": goal,
        "met": bool(met),
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _run(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
