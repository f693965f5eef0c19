"""A worker opens its device: its number, its share of the memory, and what it refuses."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from acuity.objectives.device import device as device_module
from acuity.objectives.device.allocator import expand_gpu_segments
from acuity.objectives.device.device import (
    CUDA_CONTEXT_BYTES,
    GIB,
    Device,
    check_precision,
    image_memory_budget,
    is_usable,
    limit_memory,
    memory_budget,
    open_device,
)
from acuity.objectives.device.gpu_lock import choose_device
from acuity.objectives.device.memory import is_device_error, is_out_of_memory
from acuity.objectives.errors import InputError
from acuity.study.fleet.placement import FleetOptions, place_workers
from support.standin_gpu import State, standin_gpu

GPU = torch.device("cuda:0")


@pytest.fixture
def gpus() -> Iterator[State]:
    with standin_gpu(devices=2, total_memory=8 * GIB) as state:
        yield state


def imitate_gpu(
    monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int] = (9, 0), total: int = 80 * GIB
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=total))


@pytest.mark.standin
def test_gpu_is_opened_by_its_number_and_its_memory_is_limited_there(gpus: State) -> None:
    first = open_device("cuda", workers=1)
    assert first.torch_device == torch.device("cuda:0")
    limit_memory(first)
    second = open_device("cuda:1", workers=1)
    assert (second.torch_device, torch.cuda.current_device()) == (torch.device("cuda:1"), 1)
    limit_memory(second)
    fractions = [gpus.allocator.memories[number].fraction for number in (0, 1)]
    share = second.memory_budget_bytes + second.image_budget_bytes
    assert fractions == pytest.approx([share / (8 * GIB)] * 2)


@pytest.mark.standin
def test_second_gpu_is_opened_without_a_context_on_the_first(gpus: State) -> None:
    limit_memory(open_device("cuda:1", workers=1))
    assert [gpus.allocator.memories[number].has_context for number in (0, 1)] == [False, True]


@given(total=st.integers(8 * 10**9, 141 * 10**9), workers=st.integers(1, 8), gib=st.none() | st.floats(0.25, 150))
def test_limits_and_contexts_of_all_workers_never_exceed_the_gpu(total: int, workers: int, gib: float | None) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        imitate_gpu(monkeypatch, total=total)
        try:
            steps = memory_budget(GPU, workers=workers, memory_gib=gib)
        except InputError:
            assume(False)
        images = image_memory_budget(GPU, workers=workers, memory_gib=gib)
        assert gib is None or steps == int(gib * GIB), "a budget that is set is the same on every GPU"
        assert steps > 0
        assert images >= 0
        fractions: list[float] = []
        monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda limit, _: fractions.append(limit))
        limit_memory(Device(GPU, "Some GPU", 1, steps, workers, images))
        assert workers * (fractions[0] * total + CUDA_CONTEXT_BYTES) <= total


def test_default_shares_of_usual_gpus_are_most_of_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for gib, workers in ((80, 1), (80, 4), (24, 5), (12, 3)):
        imitate_gpu(monkeypatch, total=gib * GIB)
        used = memory_budget(GPU, workers=workers) + image_memory_budget(GPU, workers=workers) + CUDA_CONTEXT_BYTES
        assert used * workers > 0.94 * gib * GIB


def test_memory_budget_that_is_set_takes_from_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate_gpu(monkeypatch)
    assert memory_budget(GPU, workers=4, memory_gib=16) == 16 * GIB
    assert image_memory_budget(GPU, workers=4, memory_gib=16) == pytest.approx((80 * 0.95 / 4 - 0.55 - 16) * GIB, abs=9)
    assert image_memory_budget(GPU, workers=4, memory_gib=4) == image_memory_budget(GPU, workers=4)
    rule = r"the memory budget is 19 GiB, must be at most 18\.45 GiB with 4 workers on Some GPU \(80\.0 GiB\): lower"
    with pytest.raises(InputError, match=rule):
        memory_budget(GPU, workers=4, memory_gib=19)
    assert memory_budget(GPU, workers=4, memory_gib=18.45) == int(18.45 * GIB), "the value that the message names"


def test_gpu_too_small_for_its_workers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate_gpu(monkeypatch, total=8 * GIB)
    with pytest.raises(InputError, match=r"has 8\.0 GiB, too few for 8 workers, each needs 1\.11 GiB: start at most 7"):
        memory_budget(GPU, workers=8)
    assert memory_budget(GPU, workers=7) > 0


@pytest.mark.parametrize("choice", ["auto", "cuda", "cuda:0"])
def test_driver_that_pytorch_cannot_use_is_not_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choice: str
) -> None:
    def is_available() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)", stacklevel=2
        )
        return False

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", is_available)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # NVML counts GPUs without CUDA
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(device_module, "_DRIVER", tmp_path / "nvidiactl")
    with pytest.raises(InputError, match=r"found version 11040.*update the driver.*--device cpu trains on the CPU"):
        open_device(choice, workers=1, threads=torch.get_num_threads())
    with pytest.raises(InputError, match=r"found version 11040"):
        choose_device(choice, folder=tmp_path)
    with pytest.raises(InputError, match="--device cpu"):
        place_workers(FleetOptions(device=choice))
    assert open_device("cpu", workers=1, threads=torch.get_num_threads()).torch_device.type == "cpu"
    if choice == "auto":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        hidden = open_device(choice, workers=1, threads=torch.get_num_threads())
        assert hidden.torch_device.type == "cpu", "the user has hidden the GPUs"


@pytest.mark.parametrize(
    ("capability", "built", "usable"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((7, 5), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_90"], True),
        ((12, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((12, 0), ["sm_75", "sm_90a", "compute_90"], True),
        ((12, 1), ["sm_90", "sm_120"], True),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:torch.cuda")  # PyTorch warns and continues
@pytest.mark.standin
@pytest.mark.usefixtures("gpus")
def test_gpu_without_kernels_is_refused_at_the_door(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], usable: bool
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: built)
    if usable:
        assert open_device("cuda", workers=1).torch_device.index == 0
    else:
        with pytest.raises(InputError, match=rf"has compute capability {capability[0]}\.{capability[1]}.*--device cpu"):
            open_device("cuda", workers=1)


def test_bf16_is_refused_on_a_gpu_that_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    imitate_gpu(monkeypatch, capability=(7, 5))
    with pytest.raises(InputError, match=r"precision is bf16, Some GPU has compute capability 7\.5, must be 8\.0"):
        check_precision(GPU, "bf16")
    check_precision(GPU, "fp32")
    check_precision(torch.device("cpu"), "bf16")
    imitate_gpu(monkeypatch, capability=(8, 0))
    check_precision(GPU, "bf16")


DISGUISES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    torch.AcceleratorError("HIP error: out of memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", DISGUISES, ids=str)
def test_out_of_memory_is_recognised_in_every_disguise(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    assert is_out_of_memory(error)
    assert is_device_error(error)
    monkeypatch.setattr("torch.zeros", fail)
    assert is_usable(Device(GPU, "Some GPU", threads=1, memory_budget_bytes=GIB)), "the device computes"


def test_other_errors_of_a_gpu_are_not_out_of_memory() -> None:
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert not is_out_of_memory(lost)
    assert is_device_error(lost)
    assert not is_device_error(RuntimeError("Error(s) in loading state_dict for ResNet"))


def test_segments_are_expandable_unless_the_user_has_configured_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        configured = {variable: "max_split_size_mb:128"}
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", configured.copy())
            expand_gpu_segments()
            assert os.environ == configured
    monkeypatch.setattr(os, "environ", {})
    expand_gpu_segments()
    assert os.environ == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.standin
@pytest.mark.usefixtures("gpus")
def test_share_of_a_worker_holds_its_images() -> None:
    share = replace(open_device("cuda", workers=2), name="")
    assert share.memory_budget_bytes == memory_budget(share.torch_device, workers=2)
    assert share.image_budget_bytes == image_memory_budget(share.torch_device, workers=2) > 0
