"""How it is told that memory ran out."""

import torch

# oneDNN does not say more of a scratchpad that it could not allocate (mobilenetv3_small_050 at its limit).
_WORDS = ("can't allocate memory", "could not create a primitive", "could not create a memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for lack of memory: by type on a GPU, by PyTorch's or oneDNN's own words on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )
