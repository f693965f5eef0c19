"""PyTorch's operations on CUDA tensors: each kernel runs the CPU's kernel over the same memory."""

import ctypes
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from support.standin_gpu.native import LOCK, drain, view_on
from support.standin_gpu.streams import Block, OrderError

if TYPE_CHECKING:
    from support.standin_gpu import State
    from support.standin_gpu.graphs import Capture

# These change only a tensor's shape and place in its memory: PyTorch's own kernels need no GPU for it.
_WITHOUT_MEMORY = {"view", "as_strided", "_reshape_alias", "unfold", "view_as_real", "view_as_complex", "set_"}
# The host waits, because the size of their result depends on values.
_SIZE_OF_RESULT = {
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "equal",
}
_POISON = 0xFF  # NaN in floating-point numbers, -1 in signed integers
# Without a kernel of their own here, PyTorch would choose cuDNN's.
_MORE = ("aten::convolution", "aten::_to_copy", "aten::copy_", "aten::_batch_norm_impl_index")


class Kernels:
    """The kernels in place, until remove()."""

    def __init__(self, state: "State") -> None:
        self._state = state
        self._library = torch.library.Library("aten", "IMPL")
        self._blocks: dict[int, Block] = {}
        self._pinned: set[int] = set()
        self._pending: dict[int, weakref.ref[torch.Tensor]] = {}
        self._generators: weakref.WeakKeyDictionary[torch.Generator, torch.Generator] = weakref.WeakKeyDictionary()
        special = {
            "aten::copy_": self._copy,
            "aten::_to_copy": self._to_copy,
            "aten::_local_scalar_dense": self._item,
            "aten::record_stream": self._record_stream,
            "aten::resize_": self._resize,
            "aten::native_dropout": self._dropout,
            "aten::_fused_sdp_choice": lambda *_, **__: 0,
        }
        names = [
            name
            for name in torch._C._dispatch_get_all_op_names()
            if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
        ]
        for name in {*names, *_MORE} - {"aten::_batch_norm_impl_index"}:
            base, _, overload = name[len("aten::") :].partition(".")
            if base in _WITHOUT_MEMORY:
                continue
            kernel = special.get(name) or self._kernel(base, overload)
            self._library.impl(name[len("aten::") :], kernel, "CUDA", allow_override=True)
        self._library.impl("_pin_memory", self._pin, "CPU", allow_override=True)
        self._library.impl("is_pinned", self._is_pinned, "CPU", allow_override=True)

    def remove(self) -> None:
        """Give CUDA's own kernels back."""
        self._library._destroy()

    def is_pinned(self, address: int | None) -> bool:
        """Whether pinned memory begins at this address."""
        drain()
        return address in self._pinned

    def check_host_read(self, tensor: torch.Tensor) -> None:
        """OrderError if a CPU tensor's values are still on their way from a GPU."""
        if self._pending and tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in self._pending:
            raise OrderError("the host reads a non_blocking copy from a GPU: wait for its event or stream first")

    def to_gpu(self, tensor: torch.Tensor, device: int) -> torch.Tensor:
        """Count a new CPU tensor's memory as the GPU's, and return it as a tensor of that GPU."""
        size = tensor.untyped_storage().nbytes()
        if size == 0:
            return view_on(tensor, device)
        state, stream = self._state, self._state.order.current(device)
        taken = state.allocator.allocate(device, stream[1], size)
        block = Block(device, stream)
        address = 0

        def release() -> None:
            with LOCK:
                if self._blocks.get(address) is block:
                    del self._blocks[address]
            state.allocator.free(device, taken)
            state.order.release(block)

        on_gpu = view_on(tensor, device, on_release=release)
        address = on_gpu.untyped_storage().data_ptr()
        with LOCK:
            self._blocks[address] = block
        return on_gpu

    def on_cpu(self, tensor: torch.Tensor, number: int, *, write: bool = False) -> torch.Tensor:
        """A GPU's tensor as the CPU's kernels see it; number: of the work on the current stream that uses it."""
        block = self._block(tensor)
        if block is not None:
            self._state.order.access(block, self._state.order.current(block.device), number, write=write)
        return view_on(tensor, None)

    def _block(self, tensor: torch.Tensor) -> Block | None:
        return self._blocks.get(tensor.untyped_storage().data_ptr())

    def _kernel(self, base: str, overload: str) -> Callable[..., Any]:
        schema = torch._C._get_schema(f"aten::{base}", overload)
        arguments = schema.arguments
        written = {
            argument.name: argument for argument in arguments if argument.alias_info and argument.alias_info.is_write
        }
        alias_of = {next(iter(argument.alias_info.before_set), name): name for name, argument in written.items()}
        returned = [
            alias_of.get(next(iter(value.alias_info.before_set), "")) if value.alias_info else None
            for value in schema.returns
        ]
        position = {argument.name: number for number, argument in enumerate(arguments)}
        makes_tensors = any(argument.name == "device" for argument in arguments)
        takes_generator = any(argument.name == "generator" for argument in arguments)
        names = [argument.name for argument in arguments]
        own = {"cudnn_batch_norm": self._batch_norm, "cudnn_batch_norm_backward": self._batch_norm_backward}
        any_overload = getattr(torch.ops.aten, base)
        operation = own.get(base) or getattr(any_overload, overload or "default")
        tensors = [argument.name for argument in arguments if str(argument.type) == "Tensor"]

        def kernel(*args: Any, **kwargs: Any) -> Any:
            state = self._state
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            device = self._device(base, given, makes_tensors=makes_tensors)
            state.check()
            stream = state.order.current(device)
            state.kernels_launched += 1
            if base in _SIZE_OF_RESULT or (base.startswith("index") and _has_mask(given.get("indices"))):
                state.synchronise("size_of_result", stream)
            number = state.order.issue(stream)

            converted = {name: self._to_cpu(value, number, write=name in written) for name, value in given.items()}
            if makes_tensors:
                converted["device"] = torch.device("cpu")
                converted.pop("pin_memory", None)
            if takes_generator:
                converted["generator"] = self._generator(given.get("generator"), device)
            positional = [converted.pop(name) for name in names[: len(args)] if name in converted]
            run = operation
            if any(isinstance(given.get(name), int | float | complex) for name in tensors):
                run = any_overload  # the dispatcher passes the tensor that PyTorch made of a number as the number
            capture = state.capture if state.capture is not None and state.capture.stream == stream else None
            if capture is not None:
                self._note(capture, given, written=set(written))
            result = run(*positional, **converted)
            if capture is not None:
                made = (result,) if len(returned) == 1 else result or ()
                new = [alias is None for alias in returned]

                def again() -> list[Any]:
                    result = run(*positional, **converted)
                    values = (result,) if len(new) == 1 else result or ()
                    return [value for value, is_new in zip(values, new, strict=True) if is_new]

                kept = [value for value, is_new in zip(made, new, strict=True) if is_new]
                capture.add(again, _flatten(kept))
            for name in written:
                self._follow_resize(given.get(name), _at(positional, converted, position[name], name))

            values = (result,) if len(returned) == 1 else result or ()
            wrapped = [
                self._to_gpu(value, device, number) if alias is None else given[alias]
                for value, alias in zip(values, returned, strict=True)
            ]
            return wrapped[0] if len(wrapped) == 1 else tuple(wrapped) if wrapped else None

        kernel.__name__ = base
        return kernel

    def _note(self, capture: "Capture", given: dict[str, Any], *, written: set[str]) -> None:
        """Note which memory a kernel of a capture uses, and keep what it will write."""
        for name, value in given.items():
            for tensor in _flatten(value):
                if tensor.is_cuda:
                    # The schema of batch normalisation does not say that it writes its running statistics.
                    writes = name in written or name in ("running_mean", "running_var")
                    capture.note_access(self._block(tensor), write=writes)
                    if writes:
                        capture.keep_before(view_on(tensor, None))

    def _to_cpu(self, value: Any, number: int, *, write: bool) -> Any:
        """An argument of a kernel as the CPU's kernel takes it."""
        if isinstance(value, torch.Tensor) and value.is_cuda:
            if write and value.numel() == 0:  # the kernel gives it its size, which it cannot on memory of others
                return torch.empty(value.shape, dtype=value.dtype)
            return self.on_cpu(value, number, write=write)
        if isinstance(value, list | tuple):
            return [self._to_cpu(element, number, write=write) for element in value]
        return value

    def _to_gpu(self, value: Any, device: int, number: int) -> Any:
        """A result of a CPU's kernel as a result of the GPU's, which this piece of work has written."""
        if isinstance(value, torch.Tensor):
            on_gpu = self.to_gpu(value, device)
            block = self._block(on_gpu)
            if block is not None:
                self._state.order.access(block, block.stream, number, write=True)
            return on_gpu
        if isinstance(value, list | tuple):
            return [self._to_gpu(element, device, number) for element in value]
        return value

    def _device(self, base: str, given: dict[str, Any], *, makes_tensors: bool) -> int:
        """The GPU of an operation; PyTorch's error if its tensors are on several devices."""
        device: torch.device | None = None
        for name, value in given.items():
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(tensor, torch.Tensor):
                    continue
                if not tensor.is_cuda:
                    indexes = "index" in base and name == "indices"
                    if tensor.dim() > 0 and not indexes and tensor.device.type == "cpu":
                        first = device or next(_gpus(given))
                        raise RuntimeError(
                            "Expected all tensors to be on the same device, but found at least two devices, "
                            f"{first} and {tensor.device}! (when checking argument {name} in method {base})"
                        )
                    if indexes:
                        self._state.synchronise("pageable_copy", self._state.order.current(next(_gpus(given)).index))
                elif device is not None and tensor.device != device:
                    raise RuntimeError(
                        "Expected all tensors to be on the same device, but found at least two devices, "
                        f"{device} and {tensor.device}! (when checking argument {name} in method {base})"
                    )
                else:
                    device = tensor.device
        if makes_tensors and given.get("device") is not None:
            device = given["device"]
        torch.cuda._lazy_init()
        index = self._state.device if device is None or device.index is None else device.index
        if index >= len(self._state.physical):
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return int(index)

    def _generator(self, generator: torch.Generator | None, device: int) -> torch.Generator:
        if generator is None:
            return torch.cuda.default_generators[device]
        if generator in torch.cuda.default_generators:
            return generator
        if generator.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if generator not in self._generators:
            self._generators[generator] = torch.Generator().manual_seed(generator.initial_seed())
        return self._generators[generator]

    def _follow_resize(self, original: Any, after: Any) -> None:
        """Give an output its new shape if the CPU's kernel changed it."""
        if isinstance(original, torch.Tensor) and original.shape != after.shape:
            memory = self.to_gpu(after, original.device.index)
            original.set_(memory.untyped_storage(), 0, after.shape, after.stride())

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        state = self._state
        state.check()
        device = (target if target.is_cuda else source).device.index
        stream = state.order.current(device)
        number = state.order.issue(stream)
        state.kernels_launched += 1
        if state.capture is not None and state.capture.stream == stream and target.is_cuda != source.is_cuda:
            state.synchronise("copy", stream)
        if not target.is_cuda:
            values = self.on_cpu(source, number)
            if non_blocking and self.is_pinned(target.untyped_storage().data_ptr()):
                self._copy_later(target, values.clone(), stream, number)
            else:
                state.synchronise("pageable_copy" if non_blocking else "copy_to_host", stream)
                target.copy_(values)
            return target
        if source.is_cuda:
            if source.device != target.device:
                source_stream = state.order.current(source.device.index)  # PyTorch orders both streams here
                state.order.wait(stream, state.order.snapshot(source_stream))
                state.order.wait(source_stream, state.order.snapshot(stream))
            there, here = self.on_cpu(target, number, write=True), self.on_cpu(source, number)
            if state.capture is not None and state.capture.stream == stream:
                self._note(state.capture, {"target": target, "source": source}, written={"target"})
                state.capture.add(lambda: there.copy_(here), [])
            there.copy_(here)
            return target
        pinned = self.is_pinned(source.untyped_storage().data_ptr())
        if non_blocking and pinned:
            here = self.on_cpu(target, number, write=True)
            block = self._block(target)
            if (
                block is None
                or source.dtype != target.dtype
                or source.stride() != target.stride()
                or not _is_dense(target)
            ):
                here.copy_(source)
            else:  # the address alone, so that the copy does not keep the GPU's memory alive
                address, size = target.data_ptr(), _extent(target)
                block.deferred.append(lambda: ctypes.memmove(address, source.data_ptr(), size) and None)
            return target
        state.synchronise("copy_to_device" if pinned else "pageable_copy", stream)
        self.on_cpu(target, number, write=True).copy_(source)
        state.order.wait_on_host({stream: number})
        return target

    def _copy_later(self, target: torch.Tensor, values: torch.Tensor, stream: Any, number: int) -> None:
        """Fill the target with poison until the host has waited for the copy."""
        address = target.untyped_storage().data_ptr()
        if target.is_contiguous():
            ctypes.memset(target.data_ptr(), _POISON, target.nbytes)
        self._pending[address] = weakref.ref(target)

        def finish() -> None:
            self._pending.pop(address, None)
            target.copy_(values)

        self._state.order.defer(stream, number, finish)

    def _to_copy(
        self,
        source: torch.Tensor,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format | None = None,
        **_: Any,
    ) -> torch.Tensor:
        if device is None:
            device = source.device
        elif device.type == "cuda" and device.index is None:
            device = torch.device("cuda", self._state.device)
        if device.type == "meta":
            return torch.empty_like(view_on(source, None), dtype=dtype, device="meta")
        if device == source.device or device.type == "cpu":
            like = view_on(source, None)
            if device.type == "cpu":
                target = torch.empty_like(like, dtype=dtype, memory_format=memory_format or torch.preserve_format)
                if non_blocking:
                    target = self._pin(target)
                return self._copy(target, source, non_blocking)
            stream = self._state.order.current(device.index)
            self._state.kernels_launched += 1
            number = self._state.order.issue(stream)
            here = self.on_cpu(source, number)
            result = torch.ops.aten._to_copy.default(here, dtype=dtype, memory_format=memory_format)
            capture = self._state.capture
            if capture is not None and capture.stream == stream:
                self._note(capture, {"source": source}, written=set())
                capture.add(
                    lambda: torch.ops.aten._to_copy.default(here, dtype=dtype, memory_format=memory_format), [result]
                )
            on_gpu: torch.Tensor = self._to_gpu(result, device.index, number)
            return on_gpu
        target = torch.empty_like(
            source, dtype=dtype, device=device, memory_format=memory_format or torch.preserve_format
        )
        return self._copy(target, source, non_blocking)

    def _item(self, tensor: torch.Tensor) -> Any:
        state = self._state
        state.check()
        stream = state.order.current(tensor.device.index)
        number = state.order.issue(stream)
        here = self.on_cpu(tensor, number)
        state.synchronise("item", stream)
        return here.item()

    def _record_stream(self, tensor: torch.Tensor, stream: torch.Stream) -> None:
        block = self._block(tensor)
        if block is not None:
            block.recorded.add((stream.device_index, stream.stream_id))

    def _resize(self, tensor: torch.Tensor, size: Any, **_: Any) -> torch.Tensor:
        here = view_on(tensor, None)
        after = torch.empty(size, dtype=here.dtype)
        if after.nbytes > tensor.untyped_storage().nbytes():
            after.view(-1)[: here.numel()].copy_(here.reshape(-1)[: after.numel()])
            memory = self.to_gpu(after, tensor.device.index)
            return tensor.set_(memory.untyped_storage(), 0, after.shape, after.stride())
        return tensor.set_(tensor.untyped_storage(), tensor.storage_offset(), after.shape, after.stride())

    def _dropout(self, tensor: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
        if not train:
            return tensor.clone(), torch.ones_like(tensor, dtype=torch.bool)
        mask = torch.empty_like(tensor).bernoulli_(1 - p)
        return tensor * mask / (1 - p), mask.bool()

    @staticmethod
    def _batch_norm(
        tensor: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, epsilon: float
    ) -> tuple[Any, ...]:
        result = torch.ops.aten.native_batch_norm(tensor, weight, bias, mean, variance, training, momentum, epsilon)
        return (*result, torch.empty(0, dtype=torch.uint8))

    @staticmethod
    def _batch_norm_backward(
        tensor: Any, gradient: Any, weight: Any, mean: Any, variance: Any, kept_mean: Any, kept_inverse: Any,
        epsilon: float, _: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        result = torch.ops.aten.native_batch_norm_backward(
            gradient, tensor, weight, mean, variance, kept_mean, kept_inverse, True, epsilon, [True, True, True]
        )
        return tuple(result)

    def _is_pinned(self, tensor: torch.Tensor, *_: Any, **__: Any) -> bool:
        return self.is_pinned(tensor.untyped_storage().data_ptr())

    def _pin(self, tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """A copy that counts as pinned until its memory is released."""
        copy = tensor.clone()
        address = copy.untyped_storage().data_ptr()

        def release() -> None:
            with LOCK:
                self._pinned.discard(address)

        pinned = view_on(copy, None, on_release=release)
        with LOCK:
            self._pinned.add(address)
        return pinned


def _flatten(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for element in value for tensor in _flatten(element)] if isinstance(value, list | tuple) else []


def _is_dense(tensor: torch.Tensor) -> bool:
    return _extent(tensor) == tensor.nbytes


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _gpus(given: dict[str, Any]) -> Any:
    for value in given.values():
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                yield tensor.device


def _has_mask(indices: Any) -> bool:
    return isinstance(indices, list | tuple) and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices
    )


def _at(positional: list[Any], named: dict[str, Any], position: int, name: str) -> Any:
    return positional[position] if position < len(positional) else named.get(name)
