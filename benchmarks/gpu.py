"""Measures Acuity on one GPU in at most ten minutes: `make gpu`, or `python benchmarks/gpu.py`.

Each step is a process with a time limit, and leaves a JSON file in benchmarks/results/gpu/. A step whose file is of
this commit and GPU is not repeated, so a run that was cut off continues when it is started again. --again repeats all
steps, --minutes sets the time of the run, --only names steps, --out another folder, --list prints the steps. --short
takes tiny networks and fractions of a second: its figures mean nothing, but all code runs, also on the stand-in GPU of
the tests.

All steps but `launch` need only torch, timm, scikit-learn, pandas, Pillow and OpenCV; `tests` needs pytest, too.
Without a GPU the script says so and ends with status 2.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "speed")]

from result_line import current_commit

from acuity.objectives.device.allocator import expand_gpu_segments
from acuity.objectives.device.device import limit_memory, open_device
from acuity.objectives.device.memory import is_out_of_memory, release_failed_step
from acuity.objectives.training.augmentation import draw_augmentation
from acuity.objectives.training.batch_probe import probe_batch
from acuity.objectives.training.interface import Hyperparameters, LabelledImages
from acuity.objectives.training.learner import Learner, make_learner, train_batches
from acuity.objectives.training.loader import BatchLoader, open_loaders
from acuity.objectives.training.train import train

ROOT = Path(__file__).resolve().parents[1]
GIB, MIB = 2**30, 2**20
Result = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What is trained, and for how long."""

    networks: tuple[str, ...] = ("resnet34", "densenet121")
    batches: tuple[tuple[int, int], ...] = ((64, 128), (224, 64), (320, 32))
    """(resolution in px, batch size) of the throughput."""
    warm_s: float = 0.5
    timed_s: float = 1.5
    kinds: tuple[str, ...] = ("acuity", "resident", "plain fp32", "plain autocast", "captured", "compiled")
    precision: str = "bf16"
    feasible: tuple[int, float, int] = (448, 12.0, 512)
    """Resolution, memory budget in GiB, and the largest batch size tried."""
    streamed: tuple[int, int, int, int] = (40, 2000, 64, 64)
    """Epochs, images, resolution, batch size."""
    checkpointed: tuple[int, int] = (30, 5000)
    """Epochs and images of 64 px."""
    workers: tuple[int, ...] = (1, 2, 4)
    together_s: float = 5.0
    launch: tuple[int, int, int] = (400, 4, 20)
    """Phantoms, trials and epochs."""
    tests: str = ""
    """Which of the tests that need a GPU, as pytest's -k; all by default."""


SHORT = Sizes(
    networks=("test_resnet",),
    batches=((32, 8),),
    warm_s=0.0,
    timed_s=0.1,
    kinds=("acuity", "resident", "plain fp32", "plain autocast", "captured"),
    feasible=(32, 0.1, 64),
    streamed=(3, 32, 32, 8),
    checkpointed=(2, 40),
    workers=(1, 2),
    together_s=0.2,
    launch=(240, 4, 12),
    tests="resident or streamed",
)

_SHORT_PATIENCE = 5
"""The stand-in GPU computes on the CPU, beside other tests."""


def main() -> None:
    """Run the steps that have no result yet, each in a process."""
    given = _parse()
    sizes = SHORT if given.short else Sizes()
    steps = _steps(sizes)
    if given.list:
        print("\n".join(steps))
        return
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: PyTorch sees no GPU here, so nothing is measured", file=sys.stderr)
        sys.exit(2)
    if given.step:
        print(json.dumps(steps[given.step][0](sizes)), flush=True)
        return
    unknown = set(given.only or steps) - set(steps)
    if unknown:
        sys.exit(f"no step is named {', '.join(sorted(unknown))}. There are: {', '.join(steps)}")
    given.out.mkdir(parents=True, exist_ok=True)
    expand_gpu_segments()  # for the steps' processes, before they import torch, as in a worker
    end = time.monotonic() + 60 * given.minutes
    for name, (_, limit_s) in steps.items():
        limit_s *= _SHORT_PATIENCE if given.short else 1
        if given.only and name not in given.only:
            continue
        file = given.out / f"{name.replace(' ', '_')}.json"
        if not given.again and _is_current(file, short=given.short):
            print(f"{name}: kept", flush=True)
            continue
        left_s = end - time.monotonic()
        if left_s < min(limit_s, 15):
            print(f"{name}: no time is left; start again to continue", flush=True)
            continue
        result = _run_step(name, limit_s=min(limit_s, left_s), short=given.short)
        if result["status"] == "cut off" and left_s < limit_s:
            print(f"{name}: cut off by the end of the run", flush=True)
            continue  # without a file, so that the next run repeats it
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: {result['status']} in {result['seconds']} s", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", metavar="STEP")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    return parser.parse_args()


def _steps(sizes: Sizes) -> dict[str, tuple[Callable[[Sizes], Result], float]]:
    """Each step's function and its time limit in seconds, the most important ones first."""
    cells = [(network, side, batch) for side, batch in sizes.batches for network in sizes.networks]
    fast = tuple(kind for kind in sizes.kinds if kind != "compiled")

    def throughput(cell: tuple[str, int, int], kinds: tuple[str, ...]) -> Callable[[Sizes], Result]:
        return lambda sizes: measure_throughput(*cell, kinds=kinds, sizes=sizes)

    steps: dict[str, tuple[Callable[[Sizes], Result], float]] = {
        "device": (describe_device, 60),
        "tests": (run_gpu_tests, 120),
        "synchronisation": (count_synchronisations, 60),
        "profile": (profile_steps, 60),
    }
    steps |= {f"throughput {cell[0]} {cell[1]}": (throughput(cell, fast), 60) for cell in cells}
    steps |= {
        "streamed": (stream_epochs, 60),
        "checkpoints": (time_checkpoints, 60),
        "feasible batch": (compare_with_bisection, 90),
        "workers": (run_workers_together, 90),
        "workers with MPS": (run_workers_with_mps, 90),
        "launch": (launch_and_resume, 120),
    }
    if "compiled" in sizes.kinds:
        steps |= {f"compiled {cell[0]} {cell[1]}": (throughput(cell, ("compiled",)), 90) for cell in cells}
    return steps


def _run_step(name: str, *, limit_s: float, short: bool) -> Result:
    command = [sys.executable, "-P", __file__, "--step", name, *(["--short"] if short else [])]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate(timeout=limit_s)
        status = "done" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, errors = process.communicate()
        status = "cut off"
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return {
        **_identity(short=short),
        "step": name,
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "figures": json.loads(lines[-1]) if lines else {},
        **({} if status == "done" else {"errors": errors[-2000:]}),
    }


def _identity(*, short: bool) -> Result:
    """What a result must share with this run to be kept."""
    return {
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "commit": current_commit(),
        "short": short,
    }


def _is_current(file: Path, *, short: bool) -> bool:
    if not file.exists():
        return False
    known = json.loads(file.read_text())
    return known["status"] == "done" and all(known.get(key) == value for key, value in _identity(short=short).items())


def describe_device(_: Sizes) -> Result:
    """The GPU, what a context takes, and whether the limit of a worker is enforced."""
    free_before, total = torch.cuda.mem_get_info(0)
    device = open_device("cuda", workers=1)
    limit_memory(device)
    torch.zeros(1, device=device.torch_device)
    properties = torch.cuda.get_device_properties(0)
    share = device.memory_budget_bytes + device.image_budget_bytes
    try:
        torch.empty(share + GIB, dtype=torch.uint8, device=device.torch_device)
        is_enforced = False
    except torch.OutOfMemoryError:
        is_enforced = True
    driver = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.used", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "name": device.name,
        "capability": [properties.major, properties.minor],
        "total_gib": total / GIB,
        "driver_and_used": driver,
        "cuda": torch.version.cuda,
        "held_outside_the_allocator_gib": (total - free_before) / GIB,
        "share_gib": share / GIB,
        "limit_is_enforced": is_enforced,
    }


def run_gpu_tests(sizes: Sizes) -> Result:
    """The tests that need a CUDA device. Without conftest.py, they need neither a database nor Optuna."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    folder = ROOT / "tests/objectives"
    files = sorted(str(file) for file in folder.glob("test_*.py") if "mark.gpu" in file.read_text())
    options = [
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-o",
        f"pythonpath={ROOT / 'tests'} {ROOT}",
        "-m",
        "gpu",
        "-k",
        sizes.tests,
    ]
    command = [sys.executable, "-m", "pytest", "-q", *options, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"status": done.returncode, "summary": lines[-1] if lines else "", "failures": failures}


def measure_throughput(network: str, side: int, batch: int, *, kinds: tuple[str, ...], sizes: Sizes) -> Result:
    """Images/s of each kind of loop of benchmarks/speed/throughput.py; a kind that fails leaves its error."""
    import throughput

    throughput.WARM_S, throughput.TIMED_S = sizes.warm_s, sizes.timed_s
    result: Result = {"batch": batch}
    for kind in kinds:
        try:
            run = throughput._measure(kind, network, side, batch)
            result[kind] = {"images_per_second": run["images_per_second"], "first_step_s": run["first_step_s"]}
        except Exception as error:
            result[kind] = {"error": f"{type(error).__name__}: {error}"[:300]}
        torch.cuda.empty_cache()
        print(json.dumps(result), flush=True)  # a run that is cut off keeps what it has
    return result


def _images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)


def _epoch(learner: Learner, loader: BatchLoader, *, images: int, batch: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return train_batches(
        learner,
        loader,
        targets=(torch.arange(images) % 2).float().to(learner.device),
        batches=torch.randperm(images, generator=generator)[: images // batch * batch].view(-1, batch),
        augmentation=draw_augmentation(images, generator=generator),
        positive_weight=1.0,
    )


def _open(
    network: str, side: int, batch: int, images: int, sizes: Sizes, **options: Any
) -> tuple[Learner, BatchLoader]:
    settings = Hyperparameters(network, side, batch, 1e-3, 1, precision=sizes.precision)
    device = torch.device("cuda", torch.cuda.current_device())
    learner = make_learner(settings, total_steps=10**6, device=device)
    (loader,) = open_loaders(_images(images, side), np.arange(images), device=device, **options)
    return learner, loader


def count_synchronisations(sizes: Sizes) -> Result:
    """One epoch in which PyTorch raises an error where the host would wait for the GPU."""
    side, batch = sizes.batches[0]
    result: Result = {}
    for name, options in (("resident", {}), ("streamed", {"image_budget_bytes": 0})):
        learner, loader = _open(sizes.networks[0], side, batch, 10 * batch, sizes, **options)
        for _ in _epoch(learner, loader, images=10 * batch, batch=batch):  # first steps may load libraries
            pass
        steps = 0
        epoch = _epoch(learner, loader, images=10 * batch, batch=batch)
        next(epoch)  # what an epoch uploads once
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps = sum(1 for _ in epoch)
            result[name] = {"steps": steps, "waits": 0}
        except RuntimeError as error:
            result[name] = {"error": str(error)[:300]}
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return result


def profile_steps(sizes: Sizes) -> Result:
    """Operators and kernels of five steps, the longest first."""
    from torch.profiler import profile, supported_activities

    side, batch = sizes.batches[0]
    learner, loader = _open(sizes.networks[0], side, batch, 10 * batch, sizes)
    for _ in _epoch(learner, loader, images=5 * batch, batch=batch):
        pass
    torch.cuda.synchronize()
    began = time.perf_counter()
    with profile(activities=supported_activities()) as profiler:
        for _ in _epoch(learner, loader, images=5 * batch, batch=batch):
            pass
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    events = profiler.key_averages()

    def on_gpu(event: Any) -> float:
        return float(event.self_device_time_total)

    longest = sorted(events, key=on_gpu, reverse=True)[:12]
    return {
        "steps": 5,
        "ms_a_step": 200 * seconds,
        "gpu_busy": sum(map(on_gpu, events)) / 1e6 / seconds,
        "launches_a_step": sum(event.count for event in events if "LaunchKernel" in event.key) / 5,
        "longest": [{"name": event.key[:80], "count": event.count, "ms": on_gpu(event) / 1e3} for event in longest],
    }


def stream_epochs(sizes: Sizes) -> Result:
    """Reserved memory after each of many epochs whose images are copied batch by batch; it must not grow."""
    epochs, images, side, batch = sizes.streamed
    learner, loader = _open(sizes.networks[0], side, batch, images, sizes, image_budget_bytes=0)
    reserved, began = [], time.perf_counter()
    for _ in range(epochs):
        for _ in _epoch(learner, loader, images=images, batch=batch):
            pass
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved() / MIB)
    return {
        "epochs": epochs,
        "reserved_mib_after_2": reserved[1],
        "reserved_mib_at_the_end": reserved[-1],
        "is_flat": reserved[-1] == reserved[1],
        "images_per_second": epochs * (images // batch * batch) / (time.perf_counter() - began),
    }


def time_checkpoints(sizes: Sizes) -> Result:
    """Seconds of one training without and with checkpoints that are written to a disk."""
    epochs, count = sizes.checkpointed
    side, batch = sizes.batches[0]
    rows, targets = np.arange(count), (np.arange(count) % 3 == 0).astype(np.float32)
    data = LabelledImages(
        _images(count, side), targets, rows, training=rows[: count * 4 // 5], validation=rows[count * 4 // 5 :]
    )
    settings = Hyperparameters(sizes.networks[0], side, batch, 1e-3, epochs, precision=sizes.precision)
    device = open_device("cuda", workers=1).torch_device
    written: list[int] = []

    with tempfile.TemporaryDirectory() as folder:

        def save(data: bytes) -> None:
            written.append(len(data))
            with Path(folder, "checkpoint").open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())

        seconds: dict[str, list[float]] = {"without": [], "with": []}
        for name in ("without", "with", "without", "with"):
            began = time.perf_counter()
            train(
                settings,
                data,
                seed=1,
                device=device,
                report=lambda *_: False,
                save_checkpoint=save if name == "with" else None,
            )
            torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
            print(json.dumps({"seconds": seconds}), flush=True)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "epochs": epochs,
        "checkpoints": len(written) // 2,
        "checkpoint_mib": max(written) / MIB,
        "seconds": seconds,
        "cost": best["with"] / best["without"] - 1,
    }


def compare_with_bisection(sizes: Sizes) -> Result:
    """The batch size that `probe_batch` finds, and the largest multiple of 8 of which two steps fit the budget."""
    side, gib, most = sizes.feasible
    device = open_device("cuda", workers=1, memory_budget_gib=gib)
    total = torch.cuda.get_device_properties(device.torch_device).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * GIB / total, device.torch_device)
    result: Result = {"budget_gib": gib}
    for network in sizes.networks:
        began = time.perf_counter()
        probe = probe_batch(
            network,
            input_size=side,
            precision=sizes.precision,
            device=device.torch_device,
            budget_bytes=int(gib * GIB),
            max_batch_size=most,
        )
        probe_s = time.perf_counter() - began
        release_failed_step(device.torch_device)
        began = time.perf_counter()
        bisected = _bisect(network, side, most=most, device=device.torch_device, sizes=sizes)
        result[network] = {
            "probed": probe.verified,
            "steps": probe.steps,
            "probe_s": probe_s,
            "peak_mib": probe.peak_memory_mib,
            "bisected": bisected,
            "bisection_s": time.perf_counter() - began,
        }
        print(json.dumps(result), flush=True)
    return result


def _bisect(network: str, side: int, *, most: int, device: torch.device, sizes: Sizes) -> int:
    settings = Hyperparameters(network, side, 8, 1e-3, 1, precision=sizes.precision)
    learner = make_learner(settings, total_steps=10**6, device=device)

    def fits(batch: int) -> bool:
        release_failed_step(device)
        try:
            (loader,) = open_loaders(_images(batch, side), np.arange(batch), device=device, image_budget_bytes=0)
            for _ in range(2):
                for _ in _epoch(learner, loader, images=batch, batch=batch):
                    torch.cuda.synchronize()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            learner.optimiser.zero_grad()
            return False
        return True

    low, high = 0, most // 8 + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(8 * middle) else (low, middle)
    return 8 * low


def run_workers_together(sizes: Sizes, variables: dict[str, str] | None = None) -> Result:
    """Images/s of processes that train on the GPU at the same time, each behind a barrier until all are warm."""
    side, batch = sizes.batches[0]
    result: Result = {"batch": batch, "resolution": side}
    for count in sizes.workers:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            code = [sys.executable, "-P", __file__, "--worker", folder, *(["--short"] if sizes is SHORT else [])]
            processes = [
                subprocess.Popen(code, env=os.environ | (variables or {}), stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            stack.callback(lambda running=processes: [process.kill() for process in running])
            while len(list(Path(folder).glob("ready-*"))) < count:
                if any(process.poll() for process in processes):
                    raise RuntimeError("a worker ended before the start")
                time.sleep(0.01)
            Path(folder, "go").touch()
            speeds = [
                json.loads(process.communicate()[0].splitlines()[-1])["images_per_second"] for process in processes
            ]
        result[str(count)] = {"images_per_second": sum(speeds), "slowest": min(speeds), "fastest": max(speeds)}
        print(json.dumps(result), flush=True)
    return result


def run_workers_with_mps(sizes: Sizes) -> Result:
    """The same through NVIDIA MPS, as `acuity launch --workers-per-gpu` starts it."""
    from acuity.study.fleet.mps import shared_gpus
    from acuity.study.fleet.placement import Placement

    if shutil.which("nvidia-cuda-mps-control") is None:
        return {"skipped": "nvidia-cuda-mps-control is not installed"}
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    most = max(sizes.workers)
    with shared_gpus([Placement("cuda", most, 1, {"CUDA_VISIBLE_DEVICES": name})] * most) as clients:
        if clients[0].environment == {"CUDA_VISIBLE_DEVICES": name}:
            return {"skipped": "MPS did not start"}
        return run_workers_together(sizes, clients[0].environment)


def be_a_worker(folder: Path, sizes: Sizes) -> None:
    """Warm up, wait at the barrier, train for a time and print the images/s."""
    side, batch = sizes.batches[0]
    images = 16 * batch
    open_device("cuda", workers=max(sizes.workers))
    learner, loader = _open(sizes.networks[0], side, batch, images, sizes)
    for _ in _epoch(learner, loader, images=images, batch=batch):
        pass
    torch.cuda.synchronize()
    (folder / f"ready-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.001)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < sizes.together_s:
        for _ in _epoch(learner, loader, images=images, batch=batch):
            done += batch
        torch.cuda.synchronize()
    print(json.dumps({"images_per_second": done / (time.perf_counter() - began)}), flush=True)


def launch_and_resume(sizes: Sizes) -> Result:
    """A small search on phantoms: SIGTERM in mid-trial, a second launch, and its budget at the end."""
    try:
        import acuity.storage.database  # noqa: F401
    except ImportError as error:
        return {"skipped": str(error)}
    from folders import scratch_folder

    images, trials, epochs = sizes.launch
    with scratch_folder("acuity-gpu-") as folder:
        from acuity.objectives.phantoms.generator import write_phantoms

        index = write_phantoms(folder / "phantoms", images=images, size=64)
        file = folder / "gpu.toml"
        file.write_text(_EXPERIMENT.format(index=index, images=index.parent / "images", trials=trials, epochs=epochs))
        environment = os.environ | {
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "ACUITY_EMBEDDED_DIR": str(folder / "server"),
        }
        environment.pop("ACUITY_STORAGE", None)
        os.environ |= environment  # also for this process's connection
        began = time.perf_counter()
        command = [sys.executable, "-m", "acuity", "launch", str(file), "--device", "cuda"]
        with (folder / "launch.log").open("wb") as log:
            launch = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            while launch.poll() is None and _count("trial_intermediate_values") < 2:
                time.sleep(0.2)
            second_epoch_s = time.perf_counter() - began
            launch.send_signal(signal.SIGTERM)
            launch.wait(timeout=60)
            stopped_s = time.perf_counter() - began - second_epoch_s
            again = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False)
        finished = _count("trials where state in ('COMPLETE', 'PRUNED')")
        resumed = _count("trial_user_attributes where key = 'resumed_epochs' and value_json::int > 0")
        printed = (folder / "launch.log").read_text(errors="replace")
    return {
        "seconds_to_the_second_epoch": second_epoch_s,
        "seconds_to_stop": stopped_s,
        "status_of_the_second_launch": again.returncode,
        "resumed_trials": resumed,
        "finished_trials": finished,
        "budget_is_met": finished == trials,
        **({} if again.returncode == 0 else {"printed": printed[-1000:]}),
    }


def _count(rows: str) -> int:
    """Rows of a table in the embedded Postgres; 0 before its tables exist."""
    from sqlalchemy import text

    from acuity.storage.database import open_storage

    with open_storage(None) as database, database.engine.connect() as connection:
        return int(connection.execute(text(f"select count(*) from {rows}")).scalar_one())


_EXPERIMENT = """
name = "gpu"
labels = ["Cardiomegaly"]
[data]
index = "{index}"
images = "{images}"
[search]
resolutions = [32, 64]
architectures = ["test_resnet"]
trials = {trials}
min_complete_per_resolution = 2
max_batch_size = 32
min_batch_size = 4
min_updates_per_epoch = 5
[training]
epochs = {epochs}
[workers]
heartbeat_s = 1
grace_s = 3
"""


if __name__ == "__main__":
    if "--worker" in sys.argv:
        be_a_worker(Path(sys.argv[sys.argv.index("--worker") + 1]), SHORT if "--short" in sys.argv else Sizes())
    else:
        main()
