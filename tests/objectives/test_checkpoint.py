"""A damaged checkpoint restarts its training, whatever error its bytes raise."""

import pytest
import torch

from acuity.objectives.training.checkpoint import Checkpoint, checkpoint_from_bytes, checkpoint_to_bytes

WHOLE = checkpoint_to_bytes(
    Checkpoint(identity="mine", aucs=[0.5], seconds=1.0, network={"weight": torch.zeros(3)}, optimiser={}, scheduler={})
)


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
