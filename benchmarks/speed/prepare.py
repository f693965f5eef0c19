"""Claim: preparing an image takes at most 1.2 times the CPU time of the fastest decoder plus resizes; memory is flat.

The images are nih-cxr-1024 (ACUITY_NIH_DIR) as JPEG, and the same images as PNG, which NIH publishes. They are resized
to the nine resolutions of the paper. Pillow, OpenCV, torchvision.io and, if installed, simplejpeg decode each image in
turn. Times are CPU times, since other programs may share the cores. Measured are:

- the cache's job in one process;
- whole builds of 1,100 images, against processes that only decode and resize;
- memory of a build of 1,100 images, against one of 11,000 (ten links to each file);
- the second `acuity prepare`, the start of Python included.

Argument: number of images in the one-process measurement (default 200).
"""

import csv
import importlib.util
import io
import json
import multiprocessing
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from acuity.objectives.images.arrays import CacheArray, DecodingJob, create_draft, decode_job
from acuity.objectives.images.cache import build_cache, cache_bytes
from acuity.objectives.index.image_index import read_index

sys.path.append(str(Path(__file__).parents[1]))
from child_process import run_script, time_command
from folders import NIH, scratch_folder
from result_line import goal_of_runs, print_result

RESOLUTIONS = (32, 64, 128, 224, 256, 320, 448, 512, 600)
ROUNDS = 5
SOURCE = NIH / "nih-cxr-1024"
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
    # On a disk: the cache of 11,000 images would not fit into memory.
    with scratch_folder("acuity-prepare-") as folder:
        files = sorted((SOURCE / "images").iterdir())[:images]
        kinds = {"png": _as_png(files, folder / "png"), "jpeg": files}
        decoders = {kind: _time_decoders(paths) for kind, paths in kinds.items()}
        goals = []
        for kind, paths in kinds.items():
            ratios, parts = _time_image(paths, folder / kind)
            print(f"{kind}: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in parts.items()))
            goals.append(goal_of_runs(f"image_{kind}", ratios, "<= 1.2", met=max(ratios) <= 1.2) | {"ms": parts})
        small, large = (_write_set(folder / str(count), count) for count in (1_100, 11_000))
        ratios, parts = _time_builds(small)
        print("whole builds: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in parts.items()), flush=True)
        goal = goal_of_runs("image_jpeg_in_a_whole_build", ratios, "<= 1.2", met=max(ratios) <= 1.2)
        goals.append(goal | {"ms": parts})
        memory = {
            count: run_script(__file__, "--memory", str(image_set))
            for count, image_set in ((1_100, small), (11_000, large))
        }
        print(f"builds: {memory}", flush=True)
        growth = memory[11_000]["peak_mib"] - memory[1_100]["peak_mib"]
        goals.append(goal_of_runs("memory_growth_mib_1100_to_11000", [growth], "<= 50", met=growth <= 50))
        prepare = [sys.executable, "-m", "acuity", "prepare", str(small / "experiment.toml")]
        time_command(prepare)  # writes the split
        second = [time_command(prepare) for _ in range(ROUNDS)]
        wall_s = [run.seconds for run in second]
        goal = goal_of_runs("second_prepare_s", wall_s, "< 2", met=statistics.median(wall_s) < 2)
        goals.append(goal | {"cpu_s": round(statistics.median(run.cpu_s for run in second), 2)})
    for goal in goals:
        print(f"{goal['name']:34} {goal['value']:7.2f} ({goal['low']:.2f} to {goal['high']:.2f})  goal {goal['goal']}")
    print_result(
        "prepare",
        n=images,
        goals=goals,
        versions={name: version(name) for name in ("opencv-python-headless", "pillow", "torchvision", "numpy")},
        resolutions=RESOLUTIONS,
        decoders_ms=decoders,
        memory=memory,
    )


def _as_png(files: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{file.stem}.png" for file in files]
    for file, path in zip(files, paths, strict=True):
        Image.open(file).save(path)
    return paths


def _decoders() -> dict[str, Callable[[bytes], object]]:
    """Functions from a file's bytes to grey pixels, each on one thread."""
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
    """Ratio of the cache's job to decoding plus resizing in each round, and the median times in ms per image."""
    folder.mkdir(exist_ok=True)
    arrays = [CacheArray(folder, "image", len(files), resolution) for resolution in RESOLUTIONS]
    for array in arrays:
        create_draft(array)
    targets = tuple((array, array.draft) for array in arrays)
    decode = _decoders()["opencv"]
    chunks = [range(i, min(i + 32, len(files))) for i in range(0, len(files), 32)]
    ours: list[float] = []
    floors: list[tuple[float, float]] = []
    for warm in range(ROUNDS + 1):
        whole = decoding = resizing = 0.0
        for rows in chunks:
            paths = [files[row] for row in rows]
            job = DecodingJob(tuple(rows), tuple(map(str, paths)), targets, "pad")
            whole += _cpu(lambda: decode_job(job))  # noqa: B023
            data = [path.read_bytes() for path in paths]
            decoding += _cpu(lambda: [decode(one) for one in data])  # noqa: B023
            images = [np.asarray(decode(one)) for one in data]
            resizing += _cpu(lambda: [_resize(image, side) for image in images for side in RESOLUTIONS])  # noqa: B023
        if warm:
            ours.append(whole / len(files))
            floors.append((decoding / len(files), resizing / len(files)))
    for array in arrays:
        array.draft.unlink()
    ratios = [ours_ms / sum(floor) for ours_ms, floor in zip(ours, floors, strict=True)]
    decoding, resizing = (statistics.median(part) for part in zip(*floors, strict=True))
    parts = {"acuity": statistics.median(ours), "fastest decode": decoding, "resizes": resizing}
    return ratios, {name: round(ms, 2) for name, ms in parts.items()}


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def _write_set(folder: Path, count: int) -> Path:
    """An image set of count links to the real files; a file has several links where count is larger."""
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
    """Ratio of a whole build to decoding plus resizing in as many processes, in turn; medians in ms per image."""
    taken = [tuple(run_script(__file__, what, str(folder)) for what in ("--build", "--floor")) for _ in range(3)]
    ours, floors = ([run["cpu_s"] / 1.1 for run in runs] for runs in zip(*taken, strict=True))
    parts = {"acuity": round(statistics.median(ours), 2), "decode and resize": round(statistics.median(floors), 2)}
    return [ours_ms / floor for ours_ms, floor in zip(ours, floors, strict=True)], parts


def _run(what: str, folder: Path) -> None:
    """The work of one process. --build and --floor print the CPU seconds of its tree, --memory the peak memory."""
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
    print(json.dumps({"peak_mib": round(peak[0] / 2**20)} if what == "--memory" else {"cpu_s": round(cpu_s, 2)}))


def _decode_and_resize(file: str) -> None:
    cv2.setNumThreads(1)
    data = np.frombuffer(Path(file).read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    for side in RESOLUTIONS:
        _resize(image, side)


def _watch_memory(peak: list[int], over: threading.Event) -> None:
    """Sample the private memory of this process and its children twice a second, without the mapped arrays."""
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


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _run(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
