"""How it is told that memory ran out, and what has to be let go before another try."""

import torch

# oneDNN does not say more of a scratchpad that it could not allocate (mobilenetv3_small_050 at its limit).
_WORDS = ("can't allocate memory", "could not create a primitive", "could not create a memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for lack of memory: by type on a GPU, by PyTorch's or oneDNN's own words on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )


def forget_failed_step(device: torch.device) -> None:
    """Let go of what a step that failed left behind; before the next training, when nothing holds the error any more.

    A backward pass that raises leaves the nodes that it had not come to yet in autograd's queue of this thread, and all
    that they saved, until the next backward pass throws them out: in a network with branches several hundred MiB, so
    that the next try ran out of memory whatever its batch. A pass through a single number empties the queue.
    """
    torch.zeros((), device=device, requires_grad=True).backward()
    if device.type == "cuda":
        torch.cuda.empty_cache()
