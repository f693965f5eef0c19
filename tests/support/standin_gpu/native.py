"""Replace the C++ objects below PyTorch's CUDA layer, and view the same memory as a CPU tensor or as a CUDA tensor."""

import ctypes
import mmap
import os
import platform
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from support.waiting import wait_until

_LIBRARIES = Path(torch.__file__).parent / "lib"
_HEADERS = Path(torch.__file__).parent / "include"
_TASKS = Path("/proc/self/task")
_CPU, _CUDA = 0, 1
_NEXT, _DELETER = 40, 56  # offsets in DLManagedTensor; the tensor's device is at 8
# x86-64 code, since ctypes cannot return a c10::Stream: {device: 2 bytes, id: 8 bytes} in two registers. Nor may Python
# run where PyTorch releases a tensor: an exception may be on its way there.
_STREAM_CODE = {"getStream": "0fb7c6 31d2 c3", "exchangeStream": "4889f0 c3"}
_PUSH = "48ba {list} 488b02 48894728 f0480fb13a 75f5 c3"  # link a released description into the list, at its byte 40
_TAKE = "48ba {list} 31c0 488702 c3"  # return the list and leave it empty

MAX_DEVICES = 8
LOCK = threading.RLock()
"""Of all bookkeeping; a thread that holds it may release a tensor, which takes it again."""

_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _machine_code(instructions: str) -> int:
    """Address of these instructions in memory that stays."""
    assert platform.machine() == "x86_64", "the stand-in GPU has machine code for x86-64 only"
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex(instructions))
    keep_forever(page)
    return ctypes.addressof(ctypes.c_char.from_buffer(page))


def keep_forever(thing: object) -> None:
    """Keep memory that C++ code uses, also after Python's end."""
    _api.Py_IncRef(ctypes.py_object(thing))


_released = ctypes.c_void_p()  # the list's first description
keep_forever(_released)
_list = ctypes.addressof(_released).to_bytes(8, "little").hex()
_push_released = _machine_code(_PUSH.format(list=_list))
_take_released = ctypes.CFUNCTYPE(ctypes.c_void_p)(_machine_code(_TAKE.format(list=_list)))
_live: dict[int, tuple[Callable[[], None], int]] = {}
"""Address of each tensor description that PyTorch holds, with what follows its release and PyTorch's own deleter."""


def drain() -> None:
    """Do what follows the releases since the last call; everything that reads the bookkeeping calls it first."""
    if not _released.value:
        return
    with LOCK:
        address = _take_released()
        while address:
            following = ctypes.c_void_p.from_address(address + _NEXT).value
            then, original = _live.pop(address)
            ctypes.c_uint64.from_address(address + _NEXT).value = 0
            _Deleter(original)(address)
            then()
            address = following


def view_on(tensor: torch.Tensor, device: int | None, *, on_release: Callable[[], None] | None = None) -> torch.Tensor:
    """The same memory as a tensor of this GPU, or of the CPU if device is None.

    drain() calls on_release when the last tensor of the new storage is gone.
    """
    capsule = torch._C._to_dlpack(tensor)
    address = _api.PyCapsule_GetPointer(capsule, b"dltensor")
    place = (ctypes.c_int32 * 2).from_address(address + 8)
    place[0], place[1] = (1, 0) if device is None else (2, device)
    if on_release is not None:
        deleter = ctypes.c_void_p.from_address(address + _DELETER)
        _live[address] = (on_release, deleter.value or 0)
        deleter.value = _push_released
    view = torch._C._from_dlpack(capsule)
    if view.stride() != tensor.stride():  # DLPack sets the stride of a dimension of size 1 to 1
        view.set_(view.untyped_storage(), 0, tensor.shape, tensor.stride())
    return view


class Table:
    """A C++ object's table of virtual functions, replaced by a copy in which some functions are ours."""

    def __init__(self, address: int, slots: list[str]) -> None:
        self._pointer = ctypes.c_void_p.from_address(address)
        self._original = self._pointer.value
        assert self._original is not None
        self._slots = slots
        # Two words before the table hold its offset and its type information.
        size = len(slots) + 2
        self._copy = (ctypes.c_void_p * size)(*(ctypes.c_void_p * size).from_address(self._original - 16))
        keep_forever(self._copy)

    def replace(self, name: str, function: Any) -> None:
        """function: a CFUNCTYPE object or the address of machine code."""
        keep_forever(function)
        self._copy[2 + self._slots.index(name)] = (
            function if isinstance(function, int) else ctypes.cast(function, ctypes.c_void_p).value
        )

    def install(self) -> None:
        self._pointer.value = ctypes.addressof(self._copy) + 16

    def restore(self) -> None:
        self._pointer.value = self._original


def guard_table() -> Table:
    """The guard of CUDA devices, by which C++ code reads and sets the current device and stream."""
    torch._C._ensureCUDADeviceGuardSet()
    registry = ctypes.c_void_p.in_dll(
        ctypes.CDLL(str(_LIBRARIES / "libc10.so")), "_ZN3c104impl26device_guard_impl_registryE"
    )
    guard = ctypes.c_void_p.from_address(ctypes.addressof(registry) + 8 * _CUDA).value
    assert guard is not None
    table = Table(guard, _virtual_functions("c10/core/impl/DeviceGuardImplInterface.h", "DeviceGuardImplInterface"))
    for name, instructions in _STREAM_CODE.items():
        table.replace(name, _machine_code(instructions))
    table.replace("getDefaultStream", _machine_code(_STREAM_CODE["getStream"]))
    return table


def hooks_table() -> Table:
    """CUDA's hooks, by which PyTorch's general code asks whether CUDA is there and allocates pinned memory."""
    slots = _virtual_functions("ATen/detail/AcceleratorHooksInterface.h", "AcceleratorHooksInterface")
    slots += _virtual_functions("ATen/detail/CUDAHooksInterface.h", "CUDAHooksInterface")
    library = ctypes.CDLL(str(_LIBRARIES / "libtorch_cpu.so"))
    get_hooks = library._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.c_void_p
    return Table(get_hooks(), slots)


def start_backward_threads() -> None:
    """Start autograd's thread for each device that the guard counts, and wait until each has its name.

    PyTorch starts them once, at the first backward pass, which may have found no GPU. It counts a thread that still
    waits for Python's lock. The thread gets its name after that, and Python may not end before.
    """
    before = _count_backward_threads()
    if before >= MAX_DEVICES:
        return
    library = ctypes.CDLL(str(_LIBRARIES / "libtorch_cpu.so"))
    get_engine = library._ZN5torch8autograd6Engine18get_default_engineEv
    get_engine.restype = ctypes.c_void_p
    engine = ctypes.c_void_p(get_engine())
    others = set(_TASKS.iterdir())
    library._ZN5torch8autograd6Engine30initialize_device_threads_poolEv(engine)
    if len(set(_TASKS.iterdir()) - others) < MAX_DEVICES:
        for _ in range(before):  # these wait for work from queues that nothing fills any more
            library._ZN5torch8autograd6Engine36decrement_non_reentrant_thread_countEv(engine)
        library._ZN5torch8autograd6Engine20start_device_threadsEv(engine)
    wait_until(lambda: _count_backward_threads() == before + MAX_DEVICES)


def end_without_destructors() -> None:
    """Let this process end with its status as soon as Python has ended, before PyTorch's destructors.

    They stop the backward threads while the threads, the device guard and the hooks are being taken apart; CUDA's own
    objects are kept for the same reason. A process with a stand-in sometimes aborted there, after all its work.
    """
    libc = ctypes.CDLL(None)
    assert libc.on_exit(libc._exit, None) == 0  # glibc passes the status on


def _count_backward_threads() -> int:
    return sum(file.read_text().startswith("pt_autograd_") for file in _TASKS.glob("*/comm"))


def cpu_allocator() -> int:
    """Address of PyTorch's CPU allocator."""
    get_allocator = ctypes.CDLL(str(_LIBRARIES / "libc10.so"))._ZN3c1015GetCPUAllocatorEv
    get_allocator.restype = ctypes.c_void_p
    address = get_allocator()
    assert isinstance(address, int)
    return address


def _virtual_functions(header: str, class_name: str) -> list[str]:
    """Names of a class's new virtual functions in the order of its table, from the header in PyTorch's wheel."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", (_HEADERS / header).read_text(), flags=re.DOTALL)
    body = re.split(rf"(?:struct|class)\s+(?:\w+\s+)?{class_name}\b[^;{{]*{{", text, maxsplit=1)[1].split("\n};")[0]
    names = []
    for match in re.finditer(r"\bvirtual\s+([^({;]*?)(~?)(\w+)\s*\(", body):
        names += ["~", "~"] if match[2] else [match[3]]  # a destructor has two entries
    return names


def call_back(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: make a Python function callable from C++ with `this` left out."""
    kind = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *arguments)
    return lambda function: kind(lambda _, *given: function(*given))


def pack_device(index: int) -> int:
    """A c10::Device of type CUDA as the number in which C++ returns it."""
    return _CUDA | (index & 0xFF) << 8


def unpack_device(packed: int) -> int:
    """Index of a c10::Device."""
    return ctypes.c_int8(packed >> 8 & 0xFF).value


def process_lives(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
