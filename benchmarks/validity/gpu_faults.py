"""Claim: each fault of the GPU path that was found by reading turns a test red when it is put back.

The faults are put back one at a time, in a copy of the checkout. Their tests run there, on the CPU or on the stand-in
GPU. All tests are first run without a fault.

Run: python benchmarks/validity/gpu_faults.py [NUMBER ...]   (about 10 minutes for all on two cores)
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300
DEVICE, TRAINING = "tests/objectives/test_device.py", "tests/objectives/test_gpu_training.py"


@dataclass(frozen=True)
class Fault:
    """A fault as a replacement of text in one file, and the test that finds it."""

    number: str
    what: str
    file: str
    before: str
    after: str
    test: str


FAULTS = (
    Fault(
        "1a",
        "cuda is not resolved to cuda:N",
        "objectives/device/device.py",
        'device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)',
        "pass",
        f"{DEVICE}::test_gpu_is_opened_by_its_number_and_its_memory_is_limited_there",
    ),
    Fault(
        "1b",
        "the thread that copies images has GPU 0 as its current one",
        "objectives/training/loader.py",
        ", start_thread=partial(torch.cuda.set_device, device)",
        "",
        f"{TRAINING}::test_thread_that_copies_images_has_the_loaders_gpu_as_its_current_one",
    ),
    Fault(
        "2a",
        "cuBLAS's message is not known as out of memory",
        "objectives/device/memory.py",
        '    "CUBLAS_STATUS_ALLOC_FAILED",\n',
        "",
        f"{DEVICE}::test_out_of_memory_is_recognised_in_every_disguise",
    ),
    Fault(
        "2b",
        "an AcceleratorError is never out of memory",
        "objectives/device/memory.py",
        'return "out of memory" in str(error)',
        "return False",
        f"{TRAINING}::test_probe_that_runs_out_of_memory_in_disguise_ends_below_the_limit",
    ),
    Fault(
        "3a",
        "contexts are not part of the workers' shares",
        "objectives/device/device.py",
        "share = int(total * _CUDA_SHARE / workers) - CUDA_CONTEXT_BYTES",
        "share = int(total * _CUDA_SHARE / workers)",
        f"{DEVICE}::test_limits_and_contexts_of_all_workers_never_exceed_the_gpu",
    ),
    Fault(
        "3b",
        "the images' room comes on top of a memory budget",
        "objectives/device/device.py",
        "return steps, min(images, share - steps)",
        "return steps, images",
        f"{DEVICE}::test_memory_budget_that_is_set_takes_from_the_images",
    ),
    Fault(
        "4",
        "every epoch has a new copy stream",
        "objectives/training/loader.py",
        "    device = copy_stream.device\n",
        "    device = copy_stream.device\n    copy_stream = torch.cuda.Stream(device)\n",
        f"{TRAINING}::test_loader_has_one_copy_stream_for_all_epochs",
    ),
    Fault(
        "5a",
        "a batch is judged by allocated memory",
        "objectives/training/batch_probe.py",
        "watch_peak_memory(device, reserved=True)",
        "watch_peak_memory(device)",
        f"{TRAINING}::test_batch_is_verified_by_two_steps_within_the_reserved_memory",
    ),
    Fault(
        "5b",
        "a batch is judged by one step",
        "objectives/training/batch_probe.py",
        'steps = 2 if device.type == "cuda" else 1',
        "steps = 1",
        f"{TRAINING}::test_batch_is_verified_by_two_steps_within_the_reserved_memory",
    ),
    Fault(
        "5c",
        "segments are not expandable",
        "objectives/device/allocator.py",
        'os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"',
        "pass",
        f"{DEVICE}::test_segments_are_expandable_unless_the_user_has_configured_the_allocator",
    ),
    Fault(
        "6a",
        "an error of the GPU passes for a damaged checkpoint",
        "objectives/training/checkpoint.py",
        "        if is_device_error(error):\n            raise\n",
        "",
        f"{TRAINING}::test_error_of_the_gpu_is_not_a_damaged_checkpoint",
    ),
    Fault(
        "6b",
        "a checkpoint is read to the GPU",
        "objectives/training/checkpoint.py",
        'torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)',
        "torch.load(io.BytesIO(data), weights_only=True)",
        f"{TRAINING}::test_checkpoint_is_not_copied_to_the_gpu_by_torch_load",
    ),
    Fault(
        "7",
        "memory is measured while the claim's lock is held",
        "study/worker/loop.py",
        "        raise _NotMeasuredError(architecture, resolution)\n",
        "        limit = memory_limit(\n"
        "            context.database, context.device, context.experiment,\n"
        "            architecture=architecture, resolution=resolution,\n"
        "        )\n",
        "tests/study/test_worker_training.py::test_memory_is_measured_before_or_after_a_claim_never_during_it",
    ),
    Fault(
        "8a",
        "an old driver makes auto train on the CPU",
        "objectives/device/device.py",
        "if not has_gpu and _DRIVER.exists() and not _gpus_are_hidden():",
        "if False:",
        f"{DEVICE}::test_driver_that_pytorch_cannot_use_is_not_replaced_by_the_cpu",
    ),
    Fault(
        "8b",
        "a GPU without kernels is opened",
        "objectives/device/device.py",
        "            _check_kernels(device)\n",
        "",
        f"{DEVICE}::test_gpu_without_kernels_is_refused_at_the_door",
    ),
    Fault(
        "8c",
        "bf16 is emulated",
        "objectives/device/device.py",
        "_MIN_BF16_CAPABILITY = (8, 0)",
        "_MIN_BF16_CAPABILITY = (3, 0)",
        f"{DEVICE}::test_bf16_is_refused_on_a_gpu_that_emulates_it",
    ),
    Fault(
        "9a",
        "fp32 is TF32 in convolutions",
        "objectives/training/prediction.py",
        "    torch.backends.cudnn.allow_tf32 = allowed\n",
        "    torch.backends.cudnn.allow_tf32 = True\n",
        f"{TRAINING}::test_products_on_a_gpu_are_in_tf32_only_where_it_is_named",
    ),
    Fault(
        "9b",
        "the last layer is in bf16, and logits tie",
        "objectives/training/prediction.py",
        "        _keep_classifier_in_fp32(network)\n",
        "        pass\n",
        f"{TRAINING}::test_logits_of_a_bf16_network_have_the_resolution_of_fp32",
    ),
    Fault(
        "10",
        "a tensor of a step has more than 2^31 elements",
        "objectives/training/batch_probe.py",
        "    max_batch_size = min(max_batch_size, largest_countable_batch(memory))\n",
        "",
        f"{TRAINING}::test_probe_tries_no_batch_with_too_many_elements",
    ),
)


def main() -> None:
    """Put each fault back, run its test, and print a line a fault and one line of JSON."""
    chosen = [fault for fault in FAULTS if not sys.argv[1:] or fault.number in sys.argv[1:]]
    rows = []
    with tempfile.TemporaryDirectory(prefix="acuity-faults-") as name:
        copy = Path(name)
        _copy_checkout(copy)
        without = _run(copy, *dict.fromkeys(fault.test for fault in chosen))
        print(f"without a fault: {without}", flush=True)
        for fault in chosen:
            file = copy / fault.file
            text = file.read_text()
            assert text.count(fault.before) == 1, f"{fault.number}: {fault.file} has changed"
            file.write_text(text.replace(fault.before, fault.after))
            is_found = _run(copy, fault.test) == "failed"
            file.write_text(text)
            row = {"fault": fault.number, "what": fault.what, "test": fault.test, "found": is_found}
            rows.append(row)
            print(
                f"{fault.number:>3} {'found' if is_found else 'NOT FOUND':<10} {fault.what}: {fault.test}", flush=True
            )
    found = sum(row["found"] for row in rows)
    goal = make_goal("faults_found", found, f">= {len(rows)}", met=found == len(rows) and without == "passed")
    print_result("gpu_faults", n=len(rows), goals=[goal], without_a_fault=without, faults=rows)


def _copy_checkout(target: Path) -> None:
    """The files that git knows, as they are in the checkout."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        elif source.is_file():
            copy.write_bytes(source.read_bytes())


def _run(checkout: Path, *tests: str) -> str:
    """Run tests in the copy: "passed", "failed", or what else pytest's status means."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", *tests]
    limit_s = TIMEOUT_S * (1 if len(tests) == 1 else 4)
    try:
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return "timed out"
    return {0: "passed", 1: "failed"}.get(done.returncode, f"status {done.returncode}")


if __name__ == "__main__":
    main()
