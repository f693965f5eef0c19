"""A worker's share of a device: its memory budget, its memory limit, and checks that the device is usable."""

import os
import platform
import resource
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from acuity.objectives.device.memory import is_out_of_memory, process_memory_bytes
from acuity.objectives.errors import InputError, first_line

GIB = 2**30
# A process's CUDA context on an H100 takes 0.53 GiB, outside PyTorch's allocator and its limit.
CUDA_CONTEXT_BYTES = int(0.55 * GIB)
_CUDA_SHARE = 0.95  # the rest is for the driver, a display and contexts that are larger than on an H100
_CUDA_IMAGE_FRACTION = 0.25
"""Fraction of a worker's share of a GPU that its images may fill; the rest is for training steps."""
_MIN_CUDA_SHARE_BYTES = GIB // 2
# The rest of a machine or container is for the operating system, the database and the page cache of the images.
CPU_SHARE = 0.8
# Python with torch, timm, pandas and optuna loaded holds 0.7 GiB before the first step.
CPU_RESERVE_BYTES = 1 * GIB
_MIN_FREE_FRACTION = 0.75
"""Fraction of a worker's share that must be free; a display or a small program may hold the rest."""
_SLACK_BYTES = 2**29  # thread stacks, images in transit to the network, growth of the interpreter
_DRIVER = Path("/dev/nvidiactl")
_MIN_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Device:
    """A worker's share of a device."""

    torch_device: torch.device
    """A GPU has its number, since each thread has a current GPU of its process's GPUs."""
    name: str
    threads: int
    memory_budget_bytes: int
    """Memory for training steps, without the images that a GPU holds."""
    workers: int = 1
    """Number of workers that share the device."""
    image_budget_bytes: int = 0
    """Memory of a GPU for images, in addition to the training steps."""


def open_device(
    choice: str, *, workers: int, threads: int | None = None, memory_budget_gib: float | None = None
) -> Device:
    """Open a device ("auto", "cpu", "cuda" or "cuda:1") that is shared by this number of workers.

    A GPU becomes the current one of this thread; every other thread that uses it must call `torch.cuda.set_device`.
    threads: of this worker on the CPU; by default an equal share of the cores. InputError if the device is unusable,
    has too little memory, or is a GPU that PyTorch cannot use; "auto" takes the CPU only where there is no GPU.
    """
    device = _find_device(choice)
    num_threads = threads or max(1, len(os.sched_getaffinity(0)) // workers)
    torch.set_num_threads(num_threads)
    return Device(
        torch_device=device,
        name=_device_name(device),
        threads=num_threads,
        memory_budget_bytes=memory_budget(device, workers=workers, memory_gib=memory_budget_gib),
        workers=workers,
        image_budget_bytes=image_memory_budget(device, workers=workers, memory_gib=memory_budget_gib),
    )


def open_for_scoring(choice: str) -> Device:
    """Open a device for predictions alone; the memory of a GPU is limited to the share of its only worker.

    Without a limit PyTorch's allocator would keep what it has freed until the GPU is full, also of the room that a
    worker on the same GPU needs. On a CPU there is no limit. Raises as `open_device`.
    """
    device = open_device(choice, workers=1)
    if device.torch_device.type != "cpu":
        limit_memory(device)
    return device


def _find_device(choice: str) -> torch.device:
    check_driver(choice)
    if choice == "auto":
        choice = "cuda" if _has_gpu()[0] else "cpu"
    try:
        device = torch.device(choice)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
            _check_kernels(device)
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {choice} cannot be used here ({first_line(error)}); use --device cpu or another one"
        ) from None
    return device


def check_driver(choice: str) -> None:
    """InputError if an NVIDIA driver is here that PyTorch cannot use, unless choice is "cpu".

    Otherwise "auto" would train on the CPU of a machine with a GPU.
    """
    if choice != "auto" and not choice.startswith("cuda"):
        return
    has_gpu, reasons = _has_gpu()
    if not has_gpu and _DRIVER.exists() and not _gpus_are_hidden():
        raise InputError(_unusable_driver(choice, reasons))


def _has_gpu() -> tuple[bool, list[str]]:
    """Whether PyTorch can use a GPU, with its warnings, for example of a driver that is too old."""
    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        return torch.cuda.is_available(), [str(reason.message) for reason in reasons]


def _gpus_are_hidden() -> bool:
    """Whether the user has hidden all GPUs from CUDA."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")


def _unusable_driver(choice: str, reasons: list[str]) -> str:
    cuda = torch.version.cuda
    needs = f"PyTorch {torch.__version__} needs a driver for CUDA {cuda}"
    remedy = f"update the driver, or install a PyTorch for an older CUDA than {cuda}"
    if cuda is None:
        needs, remedy = f"PyTorch {torch.__version__} is built without CUDA", "install a PyTorch with CUDA"
    reason = f" ({reasons[0].splitlines()[0][:200]})" if reasons else ""
    return (
        f"device {choice}: {_DRIVER} shows that an NVIDIA driver is here, but PyTorch cannot use its GPU{reason}; "
        f"{needs}: {remedy}. --device cpu trains on the CPU on purpose"
    )


def _check_kernels(device: torch.device) -> None:
    """InputError if PyTorch has no kernels for the GPU; its first kernel would fail."""
    major, minor = torch.cuda.get_device_capability(device)
    built = torch.cuda.get_arch_list()  # such as sm_80, sm_90a and compute_120; gfx90a on ROCm
    versions = [(kind, _capability(number)) for kind, _, number in (arch.partition("_") for arch in built) if number]
    has_kernels = any(
        (kind == "sm" and version[0] == major and version[1] <= minor)
        or (kind == "compute" and version <= (major, minor))  # compiled for the GPU by its driver
        for kind, version in versions
    )
    if versions and not has_kernels:
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, PyTorch {torch.__version__} "
            f"has kernels for {', '.join(built)} only: install a PyTorch for this GPU (an older CUDA for an older "
            "GPU), or choose --device cpu"
        )


def _capability(number: str) -> tuple[int, int]:
    """Major and minor version of "90a" or "120"."""
    digits = "".join(character for character in number if character.isdigit())
    return int(digits[:-1]), int(digits[-1])


def check_precision(device: torch.device, precision: str) -> None:
    """InputError if the GPU has no bf16 arithmetic; PyTorch emulates it there, and training is slower than in fp32."""
    if device.type != "cuda" or precision != "bf16" or torch.version.hip:
        return
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _MIN_BF16_CAPABILITY:
        raise InputError(
            f"precision is bf16, {torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, must be "
            '8.0 or higher for bf16: set precision = "fp32" under [training] in a new experiment, or use another GPU'
        )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}"


def memory_budget(device: torch.device, *, workers: int, memory_gib: float | None = None) -> int:
    """Bytes of the device (on a CPU: of the machine) that each of its workers may use for training steps.

    memory_gib sets the budget of a worker. By default the workers share the memory of the GPU equally, or on a CPU the
    memory of the machine or container, less a reserve for the context or the interpreter of each. InputError if nothing
    is left, or if memory_gib exceeds a worker's share of a GPU.
    """
    if device.type == "cuda":
        return _cuda_budgets(device, workers=workers, memory_gib=memory_gib)[0]
    if memory_gib is not None:
        return int(memory_gib * GIB)
    memory_bytes = _cpu_memory_bytes()
    budget = int(memory_bytes * CPU_SHARE / workers) - CPU_RESERVE_BYTES
    if budget <= 0:
        raise InputError(
            f"{memory_bytes / GIB:.1f} GiB of memory are too few for {workers} workers, each needs "
            f"{CPU_RESERVE_BYTES / GIB / CPU_SHARE:.2f} GiB before its first batch: start fewer workers, or "
            "raise cluster.memory_gib on Slurm"
        )
    return budget


def image_memory_budget(device: torch.device, *, workers: int, memory_gib: float | None = None) -> int:
    """Bytes of a GPU that each of its workers may fill with images, in addition to its training steps; 0 on a CPU.

    memory_gib: the budget of a worker's training steps, if it is set. The images get a quarter of the worker's share,
    or less if the training steps leave less.
    """
    if device.type != "cuda":
        return 0
    return _cuda_budgets(device, workers=workers, memory_gib=memory_gib)[1]


def _cuda_budgets(device: torch.device, *, workers: int, memory_gib: float | None) -> tuple[int, int]:
    """Bytes for training steps and for images of one worker; with contexts, those of all workers fit the GPU."""
    total = torch.cuda.get_device_properties(device).total_memory
    share = int(total * _CUDA_SHARE / workers) - CUDA_CONTEXT_BYTES
    if share < _MIN_CUDA_SHARE_BYTES:
        needed = (_MIN_CUDA_SHARE_BYTES + CUDA_CONTEXT_BYTES) / _CUDA_SHARE
        most = int(total / needed)
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has {total / GIB:.1f} GiB, too few for {workers} workers, each "
            f"needs {needed / GIB:.2f} GiB: " + (f"start at most {most} there" if most else "use another GPU")
        )
    images = int(share * _CUDA_IMAGE_FRACTION)
    if memory_gib is None:
        return share - images, images
    steps = int(memory_gib * GIB)
    if steps > share:
        raise InputError(
            f"the memory budget is {memory_gib:g} GiB, must be at most {int(share / GIB * 100) / 100:g} GiB with "
            f"{workers} {'worker' if workers == 1 else 'workers'} on {torch.cuda.get_device_name(device)} "
            f"({total / GIB:.1f} GiB): lower workers.memory_budget_gib or start fewer workers there"
        )
    return steps, min(images, share - steps)


def _cpu_memory_bytes(root: Path = Path("/")) -> int:
    """The smallest of the machine's memory and the limits of this process's control groups (v1 and v2)."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount, file = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("sys/fs/cgroup", "memory.max")
        )
        # A container may see its host's path but only a part of the host's tree, so every level up to the mount counts.
        for level in (Path(group.lstrip("/")), *Path(group.lstrip("/")).parents):
            limit = root / mount / level / file
            text = limit.read_text().strip() if limit.is_file() else "max"
            limits += [int(text)] if text.isdigit() else []
    return min(limits)


def limit_memory(device: Device) -> None:
    """Make allocations beyond this worker's share fail.

    Otherwise Linux kills the process, or allocations of another worker fail. On a GPU the share is the budget for
    training steps plus the budget for images.
    """
    if device.torch_device.type != "cpu":
        share = device.memory_budget_bytes + device.image_budget_bytes
        total = torch.cuda.get_device_properties(device.torch_device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share / total), device.torch_device)
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = process_memory_bytes("VmData") + device.memory_budget_bytes + _SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def is_usable(device: Device) -> bool:
    """Whether the device still computes: after some CUDA errors every later call of the process fails."""
    if device.torch_device.type != "cuda":
        return True
    try:
        torch.zeros(1, device=device.torch_device).add_(1).cpu()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def memory_shortage(device: Device) -> str | None:
    """An error message if other programs hold much of this worker's share of a GPU; otherwise None."""
    if device.torch_device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device.torch_device)
    available = free + torch.cuda.memory_reserved(device.torch_device)
    share = min(device.memory_budget_bytes, total // device.workers)  # the budget may exceed this GPU's memory
    if available >= _MIN_FREE_FRACTION * share:
        return None
    return (
        f"{device.name} has {available / GIB:.1f} GiB free of the {share / GIB:.1f} GiB that are this worker's "
        "share: another program holds the rest. Free it, start fewer workers there, or lower workers.memory_budget_gib"
    )
