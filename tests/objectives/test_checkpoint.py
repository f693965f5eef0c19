"""A damaged checkpoint restarts its training, whatever error its bytes raise."""

from dataclasses import replace

import pytest
import torch

from acuity.objectives.training.checkpoint import Checkpoint, checkpoint_from_bytes, checkpoint_to_bytes

CHECKPOINT = Checkpoint(
    identity="mine", aucs=[0.5], seconds=1.0, network={"weight": torch.arange(3.0)}, optimiser={}, scheduler={}
)
WHOLE = bytes(checkpoint_to_bytes(CHECKPOINT))


@pytest.mark.parametrize("error", [AttributeError, IndexError, AssertionError, OverflowError, UnicodeDecodeError])
def test_any_error_of_the_bytes_means_a_damaged_checkpoint(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*_: object, **__: object) -> None:
        raise error(*(("utf-8", b"x", 0, 1, "damaged") if error is UnicodeDecodeError else ("damaged",)))

    monkeypatch.setattr(torch, "load", load)
    assert checkpoint_from_bytes(WHOLE, identity="mine") is None
    assert "training starts from zero" in caplog.text


def test_no_changed_byte_of_the_pickle_raises() -> None:
    pickled = WHOLE.index(b"data.pkl") + len(b"data.pkl")
    for position in range(pickled, WHOLE.index(b"byteorder"), 3):
        changed = bytearray(WHOLE)
        changed[position] ^= 0x55
        checkpoint_from_bytes(bytes(changed), identity="mine")


def test_bytes_that_exceed_the_expected_size_are_whole() -> None:
    large = replace(CHECKPOINT, network={"a slice": torch.arange(2.0**18)[:3]}, scheduler={"names": ["n" * 2**17]})
    read = checkpoint_from_bytes(checkpoint_to_bytes(large), identity="mine")
    assert read is not None
    assert read.network["a slice"].tolist() == [0, 1, 2]
    assert read.scheduler == large.scheduler
