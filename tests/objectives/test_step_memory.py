"""The estimated step memory equals that of real tensors; shares of the memory and caps limit the batch size."""

import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acuity.objectives.device.device import GIB, _cpu_memory_bytes, memory_budget
from acuity.objectives.device.memory import MIB, is_out_of_memory
from acuity.objectives.errors import InputError
from acuity.objectives.training.network import make_network
from acuity.objectives.training.step_memory import (
    PEAK_PER_SAVED_BYTE,
    StepMemory,
    cap_batch,
    estimate_step_memory,
    largest_batch,
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("architecture", "input_size"), [("test_resnet", 48), ("test_efficientnet", 64), ("test_vit", 64)]
)
def test_estimate_equals_the_bytes_that_a_real_forward_pass_saves(architecture, input_size, precision):
    network = make_network(architecture, input_size=input_size)
    own_storages = {p.untyped_storage().data_ptr() for p in network.parameters()}
    batch, saved = 96, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own_storages:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        network(torch.rand(batch, 1, input_size, input_size))
    real = sum(storage.nbytes() for storage in saved.values())

    memory = estimate_step_memory(architecture, input_size=input_size, precision=precision)

    parameters = sum(p.nbytes for p in network.parameters())
    weight_copies = parameters // 2 if precision == "bf16" else 0
    assert memory.bytes_per_image * batch / PEAK_PER_SAVED_BYTE["cpu"] == pytest.approx(real - weight_copies, rel=0.02)
    assert memory.fixed_bytes == pytest.approx(4 * parameters + weight_copies, rel=0.02)


def test_estimate_for_resnet34_at_320_px_is_the_published_62_mib_per_image():
    memory = estimate_step_memory("resnet34", input_size=320, precision="fp32")
    assert memory.bytes_per_image / PEAK_PER_SAVED_BYTE["cpu"] / MIB == pytest.approx(62, abs=0.5)
    assert memory.fixed_bytes / MIB == pytest.approx(325, abs=1)  # 21.3 million parameters of 4 bytes, four times


STEPS = """
import torch
from acuity.objectives.training.network import make_network
from acuity.objectives.device.memory import watch_peak_memory
network = make_network("test_resnet")
optimiser = torch.optim.AdamW(network.parameters())
def step(batch):
    peak_mib = watch_peak_memory(torch.device("cpu"))
    network(torch.rand(batch, 1, 128, 128)).mean().backward()
    optimiser.step()
    optimiser.zero_grad()
    return peak_mib()
step(2)
print(step(32), step(96))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
@pytest.mark.slow  # measures the peak of a separate process, which varies while other processes share the cores
def test_estimate_covers_the_peak_memory_of_real_steps():
    run = subprocess.run([sys.executable, "-c", STEPS], check=True, capture_output=True, text=True)
    at_32, at_96 = (float(number) for number in run.stdout.split())
    memory = estimate_step_memory("test_resnet", input_size=128, precision="fp32")
    assert 0.5 < (at_96 - at_32) / 64 / (memory.bytes_per_image / MIB) <= 1  # 0.54 to 0.75 on one machine


def test_image_size_that_a_network_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"^architecture inception_v3 does not take images of 64 px \(.*Kernel size"):
        estimate_step_memory("inception_v3", input_size=64, precision="fp32")


@given(st.integers(0, 10**9), st.floats(1e3, 1e7), st.integers(0, 10**10))
def test_largest_batch_fits_and_the_next_allowed_size_does_not(fixed_bytes, bytes_per_image, budget):
    memory = StepMemory(fixed_bytes, bytes_per_image)
    batch = largest_batch(memory, budget)
    assert batch == 0 or 2 <= batch < 8 or batch % 8 == 0
    assert batch == 0 or fixed_bytes + batch * bytes_per_image <= budget
    following = {0: 2, 7: 8}.get(batch, batch + (8 if batch >= 8 else 1))
    assert fixed_bytes + following * bytes_per_image > budget


@pytest.mark.parametrize(
    ("largest", "training_images", "size", "cap"),
    [
        (96, 100_000, 96, "memory"),
        (5_000, 100_000, 1_024, "max_batch_size"),
        (5_000, 10_000, 496, "min_updates_per_epoch"),
        (64, 100, 5, "min_updates_per_epoch"),
        (0, 100_000, 0, "memory"),
    ],
)
def test_smallest_cap_limits_the_batch_size_and_is_named(largest, training_images, size, cap):
    batch = cap_batch(largest, training_images=training_images, max_batch_size=1_024, min_updates_per_epoch=20)
    assert (batch.size, batch.cap) == (size, cap)


def test_too_few_images_for_the_updates_of_an_epoch_are_refused():
    with pytest.raises(InputError, match="39 training images give no 20 batches of at least 2 an epoch"):
        cap_batch(64, training_images=39, max_batch_size=1_024, min_updates_per_epoch=20)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_limits_of_both_control_group_versions_apply(tmp_path):
    write(tmp_path / "proc/self/cgroup", "9:name=systemd:/\n4:memory:/docker/abc\n0::/slice/job\n")
    machine = _cpu_memory_bytes(tmp_path)
    assert machine > 0

    write(tmp_path / "sys/fs/cgroup/slice/job/memory.max", "max\n")
    write(tmp_path / "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n")  # v1's no limit
    assert _cpu_memory_bytes(tmp_path) == machine

    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "300000000\n")  # as a v1 container sees it
    assert _cpu_memory_bytes(tmp_path) == 300_000_000
    write(tmp_path / "sys/fs/cgroup/slice/memory.max", "200000000\n")  # the limit of an outer group applies too
    assert _cpu_memory_bytes(tmp_path) == 200_000_000


def test_workers_share_the_machine_and_each_has_a_reserve(monkeypatch):
    monkeypatch.setattr("acuity.objectives.device.device._cpu_memory_bytes", lambda: 10 * GIB)
    device = torch.device("cpu")
    assert memory_budget(device, workers=2) == 3 * GIB
    assert memory_budget(device, workers=2, memory_gib=0.5) == GIB // 2
    with pytest.raises(InputError, match=r"10\.0 GiB of memory are too few for 8 workers, each needs 1\.25 GiB"):
        memory_budget(device, workers=8)


STEP_BEYOND_THE_LIMIT = """
from acuity.objectives.device.allocator import return_large_blocks
return_large_blocks()  # as in a worker; else one run in twelve crashes in native code at a null pointer
import resource, sys, torch
from pathlib import Path
from acuity.objectives.training.network import make_network
from acuity.objectives.device.memory import is_out_of_memory
network = make_network(sys.argv[1])
network(torch.rand(2, 1, 64, 64)).mean().backward()
data = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (data + 2**27, -1))
for batch in range(16, 1024, 16):
    try:
        network(torch.rand(batch, 1, 64, 64)).mean().backward()
    except RuntimeError as error:
        print(is_out_of_memory(error))
        break
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits allocations on Linux only")
@pytest.mark.parametrize("architecture", ["test_resnet", "mobilenetv3_small_050"])
def test_out_of_memory_at_the_limit_is_distinguished_from_other_errors(architecture):
    """One run in thirty raises nothing: oneDNN runs a kernel that it could not allocate, and the process crashes."""
    for _ in range(5):
        run = subprocess.run(
            [sys.executable, "-c", STEP_BEYOND_THE_LIMIT, architecture], check=False, capture_output=True, text=True
        )
        if run.returncode != -signal.SIGSEGV:  # the fleet replaces a worker that crashes so
            break
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr
    assert not is_out_of_memory(RuntimeError("Kernel size can't be greater than actual input size"))


def test_out_of_memory_while_the_network_is_built_is_not_reported_as_an_unsuitable_architecture(monkeypatch):
    def run_out(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9437184 bytes.")

    monkeypatch.setattr("timm.create_model", run_out)
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        make_network("test_resnet")
    assert is_out_of_memory(raised.value)
