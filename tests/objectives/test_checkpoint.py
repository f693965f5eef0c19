"""A damaged checkpoint restarts its training, whatever error its bytes raise."""

import io
import zipfile
from dataclasses import replace

import pytest
import torch

from acuity.objectives.training.checkpoint import (
    Checkpoint,
    checkpoint_from_bytes,
    checkpoint_to_bytes,
    read_network_state,
)

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


def test_checkpoint_that_unpacks_to_more_than_its_size_is_damaged(caplog: pytest.LogCaptureFixture) -> None:
    """1.1 MB of such a file took 1.2 GB of memory."""
    large = checkpoint_to_bytes(
        Checkpoint("mine", aucs=[], seconds=0.0, network={"weight": torch.zeros(2**22)}, optimiser={}, scheduler={})
    )
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(large)) as stored,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert len(packed.getvalue()) < len(large) / 100
    assert torch.load(io.BytesIO(packed.getvalue()), weights_only=True)["network"]["weight"].numel() == 2**22
    assert checkpoint_from_bytes(packed.getvalue(), identity="mine") is None
    assert "it is compressed" in caplog.text
    with pytest.raises(ValueError, match="it is compressed"):
        read_network_state(packed.getvalue())
