"""The stand-in GPU: PyTorch's checks, devices, memory, order of streams, waits of the host."""

import copy
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from support.standin_gpu import OrderError, environment, standin_gpu
from support.standin_gpu.allocator import ERRORS
from support.standin_gpu.settings import GIB, MIB, Settings
from support.threads import one_thread

pytestmark = pytest.mark.standin


@pytest.fixture
def gpus():
    with standin_gpu(devices=2, total_memory=2 * GIB) as state:
        yield state


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def python(code, **settings):
    """Run code in a child process that has stand-in GPUs; returns the process and its error output."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment(Settings(**settings)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def train(device, *, precision, memory_format, steps=4):
    """Train timm's test_resnet in a plain loop; returns losses and final weights on the CPU."""
    torch.manual_seed(3)
    network = timm.create_model("test_resnet", num_classes=1, in_chans=1).to(device, memory_format=memory_format)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    images = torch.rand(steps, 8, 1, 32, 32)
    targets = (torch.rand(steps, 8) < 0.5).float()
    losses = []
    for batch, known in zip(images, targets, strict=True):
        here = batch.to(device).to(memory_format=memory_format)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = network(here).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(logits.float(), known.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, {name: value.cpu() for name, value in network.state_dict().items()}


def test_no_gpu_is_left_after_the_block():
    with standin_gpu(devices=3):
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 3
    assert not torch.cuda.is_available()
    assert torch.cuda.device_count() == 0
    with pytest.raises(RuntimeError):
        torch.ones(1, device="cuda")


def test_properties_are_those_of_the_settings():
    with standin_gpu(devices=2, name="NVIDIA T4", capability=(7, 5), total_memory=16 * GIB):
        first, second = map(torch.cuda.get_device_properties, range(2))
        assert (first.name, first.major, first.minor, first.total_memory) == ("NVIDIA T4", 7, 5, 16 * GIB)
        assert first.uuid != second.uuid
        assert torch.cuda.get_device_name(1) == "NVIDIA T4"
        assert torch.cuda.get_device_capability("cuda:1") == (7, 5)
        assert not torch.cuda.is_bf16_supported(including_emulation=False)


@pytest.mark.usefixtures("gpus")
def test_pytorchs_own_checks_of_arguments_remain():
    with pytest.raises(ValueError, match=r"Expected a torch\.device with a specified index"):
        torch.cuda.set_per_process_memory_fraction(0.5, torch.device("cuda"))
    with pytest.raises(ValueError, match="Invalid fraction value"):
        torch.cuda.set_per_process_memory_fraction(1.5, 0)
    with pytest.raises(AssertionError, match="Invalid device id"):
        torch.cuda.get_device_properties(2)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(1, device="cuda:2")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_has_the_same_numbers_as_on_the_cpu(precision, memory_format):
    how = {"precision": precision, "memory_format": memory_format}
    losses, weights = train(torch.device("cuda:0"), **how)
    expected_losses, expected_weights = train(torch.device("cpu"), **how)
    assert losses == expected_losses
    for name, expected in expected_weights.items():
        assert torch.equal(weights[name], expected), name


@pytest.mark.usefixtures("gpus")
def test_tensors_report_their_gpu_and_do_not_mix():
    here, there, on_cpu = torch.ones(3, device="cuda"), torch.ones(3, device="cuda:1"), torch.ones(3)
    assert (here.device, here.is_cuda, type(here)) == (torch.device("cuda:0"), True, torch.Tensor)
    assert (here[1:] * 2).device == torch.device("cuda:0")
    for other in (there, on_cpu):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            here + other
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([here, on_cpu])
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        here.numpy()
    assert (here + torch.tensor(2.0)).tolist() == [3, 3, 3]  # PyTorch allows a number of the CPU
    assert here.to("cuda:1").device == there.device


@pytest.mark.usefixtures("gpus")
def test_checkpoint_of_a_gpu_loads_on_another_device():
    file = io.BytesIO()
    torch.save({"weight": torch.arange(4.0, device="cuda:1")}, file)
    for place, device in ((None, "cuda:1"), ("cpu", "cpu"), ("cuda:0", "cuda:0")):
        file.seek(0)
        weight = torch.load(file, map_location=place)["weight"]
        assert weight.device == torch.device(device)
        assert weight.tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("gpus")
def test_loading_a_checkpoint_can_run_out_of_memory():
    """PyTorch releases what it has loaded while the error is on its way."""
    file = io.BytesIO()
    torch.save([torch.zeros(2 * MIB, dtype=torch.uint8) for _ in range(4)], file)
    torch.cuda.set_per_process_memory_fraction(44 / 2048, 0)
    for _ in range(2):
        file.seek(0)
        with pytest.raises(torch.OutOfMemoryError):
            torch.load(file, map_location="cuda:0", weights_only=True), torch.ones(30 * MIB, device="cuda")
        assert torch.cuda.memory_allocated() == 0


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "operation",
    [
        lambda tensor: tensor % 2,
        lambda tensor: 2.5**tensor,
        lambda tensor: 1 / (tensor + 1),
        lambda tensor: torch.where(tensor > 1, tensor, 0.5),
        lambda tensor: tensor[tensor > 1].cumsum(0),
        lambda tensor: F.interpolate(tensor.view(1, 1, 2, 2), size=(5, 5), mode="bilinear"),
        lambda tensor: F.grid_sample(tensor.view(1, 1, 2, 2), tensor.view(1, 1, 2, 2), align_corners=False),
        lambda tensor: F.batch_norm(tensor.view(2, 2), None, None, training=True),
        lambda tensor: torch.quantile(tensor, 0.3),
        lambda tensor: tensor.sort(descending=True).values,
        lambda tensor: copy.deepcopy(tensor),
    ],
)
def test_operations_give_the_cpus_results(operation):
    on_cpu = torch.arange(4.0)
    result = operation(on_cpu.cuda())
    expected = operation(on_cpu)
    assert result.device == torch.device("cuda:0")
    assert torch.equal(result.cpu(), expected)
    assert result.dtype == expected.dtype


@pytest.mark.usefixtures("gpus")
def test_current_device_is_that_of_the_thread():
    torch.cuda.set_device(1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append((torch.cuda.current_device(), torch.ones(1, device="cuda"))))
    thread.start()
    thread.join()
    assert torch.cuda.current_device() == 1
    assert torch.ones(1, device="cuda").device.index == 1
    assert (seen[0][0], seen[0][1].device.index) == (0, 0)


def test_leaving_a_stream_of_another_gpu_makes_a_context_on_gpu_0(gpus):
    def copy_in_a_thread(*, select):
        if select:
            torch.cuda.set_device(1)
        with torch.cuda.stream(torch.cuda.Stream(torch.device("cuda:1"))):
            pass

    for select in (True, False):
        thread = threading.Thread(target=copy_in_a_thread, kwargs={"select": select})
        thread.start()
        thread.join()
        assert gpus.allocator.memories[1].has_context
        assert gpus.allocator.memories[0].has_context is not select


@pytest.mark.usefixtures("gpus")
def test_memory_is_counted_and_freed():
    assert torch.cuda.memory_allocated() == 0
    images = torch.zeros(100 * MIB, dtype=torch.uint8, device="cuda")
    view = images[: 50 * MIB]
    assert torch.cuda.memory_allocated() == 100 * MIB
    assert torch.cuda.mem_get_info()[0] == 2 * GIB - GIB // 2 - 100 * MIB
    del images
    assert torch.cuda.memory_allocated() == 100 * MIB
    del view
    assert torch.cuda.memory_allocated() == 0
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_reserved() == 100 * MIB
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.memory_reserved() == torch.cuda.max_memory_reserved() == 0


@pytest.mark.usefixtures("gpus")
def test_each_stream_has_its_own_pool_of_memory():
    for number in range(1, 5):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.zeros(40 * MIB, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_reserved() == number * 40 * MIB


@pytest.mark.usefixtures("gpus")
def test_allocation_beyond_the_fraction_fails():
    torch.cuda.set_per_process_memory_fraction(0.25, 0)
    kept = torch.zeros(400 * MIB, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory. Tried to allocate 200.00 MiB. GPU 0"):
        torch.zeros(200 * MIB, dtype=torch.uint8, device="cuda")
    torch.zeros(200 * MIB, dtype=torch.uint8, device="cuda:1")
    del kept
    torch.zeros(200 * MIB, dtype=torch.uint8, device="cuda")  # the cached block is returned first


@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_can_be_disguised(kind):
    texts = {
        "OutOfMemoryError": "CUDA out of memory",
        "AcceleratorError": "CUDA error: out of memory",
        "cublas": "CUBLAS_STATUS_ALLOC_FAILED",
        "cudnn": "CUDNN_STATUS_ALLOC_FAILED",
        "host": "HOST_ALLOCATION_FAILED",
        "find": "FIND was unable to find an engine to execute this computation",
        "get": "GET was unable to find an engine to execute this computation",
        "driver": "CUDA driver error: out of memory",
    }
    with standin_gpu(total_memory=GIB, out_of_memory=kind), pytest.raises(ERRORS[kind], match=texts[kind]) as caught:
        torch.empty(GIB, dtype=torch.uint8, device="cuda")
    assert type(caught.value) is ERRORS[kind]


def test_one_allocation_can_fail_in_mid_training():
    with standin_gpu(fail_allocation=2):
        torch.ones(2 * MIB, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(2 * MIB, dtype=torch.uint8, device="cuda")
        torch.ones(2 * MIB, dtype=torch.uint8, device="cuda")


def test_backward_pass_out_of_memory_reaches_the_caller():
    with standin_gpu(total_memory=GIB) as state:
        weight = torch.ones(100 * MIB // 4, device="cuda", requires_grad=True)
        loss = (weight * weight).sum()
        torch.cuda.set_per_process_memory_fraction(0.2, 0)
        with pytest.raises(torch.OutOfMemoryError):
            loss.backward()
        assert state.allocator.memories[0].out_of_memory_errors == 1


def test_processes_share_a_gpu(tmp_path):
    settings = {"total_memory": 2 * GIB, "folder": str(tmp_path)}
    with standin_gpu(**settings):
        kept = torch.zeros(GIB, dtype=torch.uint8, device="cuda")
        assert torch.cuda.mem_get_info()[0] == GIB // 2
        child = python("import torch; torch.cuda.set_device(0); torch.zeros(1, device='cuda')", **settings)
        assert "OutOfMemoryError" in child.stderr  # its context fits, its first block does not
        assert torch.cuda.mem_get_info()[0] == GIB // 2  # the child's context ended with it
        del kept
        torch.cuda.empty_cache()
        assert (
            python("import torch; torch.zeros(2**30 - 2**20, device='cuda', dtype=torch.uint8)", **settings).returncode
            == 0
        )


@pytest.mark.usefixtures("gpus")
def test_copy_to_the_host_may_not_be_read_before_its_event():
    source = torch.arange(3.0, device="cuda")
    copied = source.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    for read in (torch.Tensor.tolist, torch.Tensor.numpy, lambda copy: copy[0].item(), lambda copy: bool(copy[1])):
        with pytest.raises(OrderError, match="reads a non_blocking copy"):
            read(copied)
    assert copied.sum().isnan()  # operations are not stopped; they see no values
    source.zero_()  # the stream does this after the copy
    event.synchronize()
    assert copied.tolist() == [0, 1, 2]


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("wait", [torch.cuda.synchronize, lambda: torch.cuda.current_stream().synchronize()])
def test_any_wait_for_the_stream_completes_its_copies(wait):
    copied = torch.ones(2, device="cuda").to("cpu", non_blocking=True)
    wait()
    assert copied.tolist() == [1, 1]


@pytest.mark.usefixtures("gpus")
def test_stream_must_wait_for_another_streams_work():
    pinned = torch.ones(4).pin_memory()
    assert pinned.is_pinned()
    assert not torch.ones(4).is_pinned()
    copies, compute = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(copies):
        batch = pinned.to("cuda", non_blocking=True)
        copied = copies.record_event()
    with pytest.raises(OrderError, match=r"stream \(0, 0\) reads a tensor that stream \(0, 1\) may still write"):
        batch + 1
    compute.wait_event(copied)
    assert (batch + 1).tolist() == [2, 2, 2, 2]
    batch.record_stream(compute)


@pytest.mark.usefixtures("gpus")
def test_pinned_memory_may_not_change_before_its_copy_is_done():
    pinned = torch.ones(2).pin_memory()
    batch = pinned.to("cuda", non_blocking=True)
    pinned.zero_()
    assert batch.tolist() == [0, 0]


@pytest.mark.usefixtures("gpus")
def test_missing_record_stream_is_an_error():
    copies, compute = torch.cuda.Stream(), torch.cuda.current_stream()
    for recorded in (True, False):
        with torch.cuda.stream(copies):
            batch = torch.ones(4).pin_memory().to("cuda", non_blocking=True)
        compute.wait_stream(copies)
        result = batch + 1
        if recorded:
            batch.record_stream(compute)
            del batch
            result + 1
        else:
            del batch
            with pytest.raises(OrderError, match="record_stream"):
                result + 1


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("item", lambda tensor: tensor[0].item()),
        ("item", lambda tensor: bool(tensor[0])),
        ("item", lambda tensor: float(tensor[0])),
        ("copy_to_host", lambda tensor: tensor.cpu()),
        ("pageable_copy", lambda tensor: torch.ones(2).to(tensor.device, non_blocking=True)),
        ("copy_to_device", lambda tensor: torch.ones(2).pin_memory().to(tensor.device)),
        ("size_of_result", lambda tensor: tensor[tensor > 0]),
        ("synchronize", lambda _: torch.cuda.synchronize()),
    ],
)
def test_waits_of_the_host_are_counted(gpus, kind, operation):
    tensor = torch.ones(2, device="cuda")
    gpus.counts.clear()
    tensor = (tensor + 1).sqrt_()
    torch.ones(2).pin_memory().to("cuda", non_blocking=True)
    assert not gpus.counts
    operation(tensor)
    assert gpus.counts == {kind: 1}


@pytest.mark.usefixtures("gpus")
def test_waits_of_the_host_can_be_errors():
    loss = torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        loss.item()


@pytest.mark.usefixtures("gpus")
def test_seed_determines_a_gpus_random_numbers():
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append([torch.rand(3, device="cuda").tolist(), F.dropout(torch.ones(9, device="cuda")).tolist()])
    assert drawn[0] == drawn[1]


def test_child_process_gets_the_gpus_when_it_imports_torch():
    child = python(
        "import torch; print(torch.cuda.device_count(), torch.ones(2, device='cuda:3').sum().item())", devices=4
    )
    assert (child.returncode, child.stdout) == (0, "4 2.0\n"), child.stderr


@pytest.mark.parametrize("before", ["", "torch._C._ensureCUDADeviceGuardSet();"])
def test_gpus_can_follow_a_backward_pass_on_the_cpu(before):
    code = f"""
import torch
{before}
torch.ones(1, requires_grad=True).sum().backward()
from support.standin_gpu import standin_gpu
for devices in (1, 8):
    with standin_gpu(devices=devices):
        weight = torch.ones(1, device=f"cuda:{{devices - 1}}", requires_grad=True)
        weight.sum().backward()
        print(weight.grad.device)
torch.ones(1, requires_grad=True).sum().backward()
import os
print("done", flush=True)
os._exit(0)  # without this, such a process sometimes aborts at its end: autograd's first threads are not joined
"""
    tests = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", code], env=tests, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (0, "cuda:0\ncuda:7\ndone\n"), child.stderr


def test_visible_devices_choose_and_number_the_gpus(monkeypatch):
    with standin_gpu(devices=4):
        uuid = torch.cuda.get_device_properties(3).uuid
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"GPU-{uuid},1,9,0")
    with standin_gpu(devices=4):
        assert torch.cuda.device_count() == 2
        assert torch.cuda.get_device_properties(0).uuid == uuid


def test_fork_after_the_first_use_is_refused():
    code = "import os, torch; torch.ones(1, device='cuda'); os.fork() or torch.cuda.synchronize()"
    assert "Cannot re-initialize CUDA in forked subprocess" in python(code).stderr
