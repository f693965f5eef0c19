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

_LIBRARIES = Path(torch.__file__).parent / "lib"
_HEADERS = Path(torch.__file__).parent / "include"
_CPU, _CUDA = 0, 1
_DELETER = 56  # offset in DLManagedTensor; the tensor's device is at 8
# Both return a c10::Stream, which ctypes cannot: {device: 2 bytes, id: 8 bytes} in two registers.
_STREAM_CODE = {
    "x86_64": {"getStream": "0fb7c6 31d2 c3", "exchangeStream": "4889f0 c3"},
    "aarch64": {"getStream": "203c4092 010080d2 c0035fd6", "exchangeStream": "e00301aa e10302aa c0035fd6"},
}

LOCK = threading.RLock()
"""Of all bookkeeping; a thread that holds it may release a tensor, which takes it again."""

_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_live: dict[int, tuple[Callable[[], None], int]] = {}
"""Address of each tensor description that PyTorch holds, with what follows its release and PyTorch's own deleter."""


@_Deleter
def _released(address: int) -> None:
    then, original = _live.pop(address)
    _Deleter(original)(address)
    then()


def view_on(tensor: torch.Tensor, device: int | None, *, on_release: Callable[[], None] | None = None) -> torch.Tensor:
    """The same memory as a tensor of this GPU, or of the CPU if device is None.

    on_release is called, by any thread, when the last tensor of the new storage is gone.
    """
    capsule = torch._C._to_dlpack(tensor)
    address = _api.PyCapsule_GetPointer(capsule, b"dltensor")
    place = (ctypes.c_int32 * 2).from_address(address + 8)
    place[0], place[1] = (1, 0) if device is None else (2, device)
    if on_release is not None:
        deleter = ctypes.c_void_p.from_address(address + _DELETER)
        _live[address] = (on_release, deleter.value or 0)
        deleter.value = ctypes.cast(_released, ctypes.c_void_p).value
    view = torch._C._from_dlpack(capsule)
    if view.stride() != tensor.stride():  # DLPack sets the stride of a dimension of size 1 to 1
        view.set_(view.untyped_storage(), 0, tensor.shape, tensor.stride())
    return view


def forget_live_tensors() -> None:
    """Give all tensors PyTorch's own deleter: Python cannot be called any more once it has ended."""
    for address, (_, original) in _live.items():
        ctypes.c_void_p.from_address(address + _DELETER).value = original
    _live.clear()


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
        self._kept: list[Any] = []

    def replace(self, name: str, function: Any) -> None:
        """function: a CFUNCTYPE object or the address of machine code."""
        self._kept.append(function)
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
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    for number, (name, instructions) in enumerate(_STREAM_CODE[platform.machine()].items()):
        code[64 * number : 64 * number + 64] = bytes.fromhex(instructions).ljust(64, b"\0")
        table.replace(name, start + 64 * number)
        if name == "getStream":
            table.replace("getDefaultStream", start + 64 * number)
    table._kept.append(code)
    return table


def hooks_table() -> Table:
    """CUDA's hooks, by which PyTorch's general code asks whether CUDA is there and allocates pinned memory."""
    slots = _virtual_functions("ATen/detail/AcceleratorHooksInterface.h", "AcceleratorHooksInterface")
    slots += _virtual_functions("ATen/detail/CUDAHooksInterface.h", "CUDAHooksInterface")
    library = ctypes.CDLL(str(_LIBRARIES / "libtorch_cpu.so"))
    get_hooks = library._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.c_void_p
    return Table(get_hooks(), slots)


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
