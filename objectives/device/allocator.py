"""Set how glibc and torch allocate large blocks of memory."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_LARGE_BYTES = 4 * 2**20
_KEPT_BYTES = 64 * 2**20


def expand_gpu_segments() -> None:
    """Let torch's allocator grow its segments on a GPU, unless the user has configured it.

    Call it before torch is imported. Otherwise a segment is as large as its first block, and blocks of other sizes
    leave parts of it unused: the memory is reserved, and the limit of a worker acts on what is reserved.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def return_large_blocks() -> None:
    """Let glibc map each block of 4 MiB or more by itself and return it when freed; let torch ask for huge pages.

    Call it before torch's first tensor. By default, glibc keeps freed blocks of up to 32 MiB in its heap, and the holes
    count against RLIMIT_DATA: after one step that ran out of memory, even a batch of 3 did not fit.

    glibc keeps up to 64 MiB at the end of its heap for smaller blocks. With its default of 128 KiB, each step returned
    the pages of blocks of 1 to 4 MiB and faulted them in again: 1.6 to 2.9 times the page faults.

    A step takes 0.91, 0.96 and 1.00 times the CPU time that it takes with glibc's defaults (test_resnet at 128 px,
    resnet10t at 96, densenet121 at 64; benchmarks/speed/cpu_allocator.py). Without huge pages, and with blocks from
    1 MiB on, it did 0.62, 0.71 and 0.76 times the images/s. Only Linux with glibc is affected.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
