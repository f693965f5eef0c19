"""The next attempt reads a trial's checkpoint, and no attempt overwrites a later one."""

import os
from pathlib import Path

import pytest

from acuity.storage.checkpoints import Checkpoints, open_checkpoints
from acuity.storage.errors import StorageError

STUDY = "nih/Pleural Thickening"


@pytest.fixture(params=["folder", "memory"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    """Checkpoints on a local disk, and in fsspec's memory as an example of another file system."""
    at = {"folder": str(tmp_path / "checkpoints"), "memory": f"memory://{tmp_path.name}/checkpoints"}
    return open_checkpoints(at[request.param])


@pytest.fixture
def on_disk(tmp_path: Path) -> Checkpoints:
    return open_checkpoints(str(tmp_path / "checkpoints"))


def test_next_attempt_reads_the_newest_checkpoint(checkpoints: Checkpoints) -> None:
    checkpoints.write(STUDY, 7, attempt=1, data=b"epoch 1")
    checkpoints.write(STUDY, 7, attempt=1, data=b"epoch 2")
    assert checkpoints.read(STUDY, 7, attempt=2) == b"epoch 2"


def test_trial_without_checkpoint_reads_none(checkpoints: Checkpoints) -> None:
    checkpoints.write(STUDY, 7, attempt=1, data=b"another trial's")
    checkpoints.write("nih/Mass", 77, attempt=1, data=b"another study's")
    assert checkpoints.read(STUDY, 77, attempt=9) is None


def test_worker_that_resumes_late_does_not_overwrite_its_successors_checkpoint(checkpoints: Checkpoints) -> None:
    checkpoints.write(STUDY, 7, attempt=2, data=b"the successor's epoch 5")
    checkpoints.write(STUDY, 7, attempt=1, data=b"the late worker's epoch 3")
    assert checkpoints.read(STUDY, 7, attempt=2) == b"the successor's epoch 5"
    assert checkpoints.read(STUDY, 7, attempt=3) == b"the successor's epoch 5"


def test_attempt_never_reads_a_later_attempts_checkpoint(checkpoints: Checkpoints) -> None:
    checkpoints.write(STUDY, 7, attempt=9, data=b"nine")
    checkpoints.write(STUDY, 7, attempt=10, data=b"ten")
    assert checkpoints.read(STUDY, 7, attempt=9) == b"nine"
    assert checkpoints.read(STUDY, 7, attempt=11) == b"ten"
    assert checkpoints.read(STUDY, 7, attempt=8) is None


def test_removal_removes_these_attempts_alone(checkpoints: Checkpoints) -> None:
    for origin, attempt in ((7, 1), (7, 2), (70, 1)):
        checkpoints.write(STUDY, origin, attempt=attempt, data=b"data")
    assert checkpoints.attempts(STUDY) == {(7, 1), (7, 2), (70, 1)}
    checkpoints.remove(STUDY, {(7, 1), (7, 2)})
    checkpoints.remove(STUDY, {(7, 1), (7, 2)})
    assert checkpoints.read(STUDY, 7, attempt=9) is None
    assert checkpoints.read(STUDY, 70, attempt=9) == b"data"
    assert checkpoints.attempts(STUDY) == {(70, 1)}


def test_removed_study_leaves_no_checkpoint_to_a_later_study_of_its_name(checkpoints: Checkpoints) -> None:
    checkpoints.write(STUDY, 7, attempt=1, data=b"data")
    checkpoints.write(f"{STUDY}/confirm", 7, attempt=1, data=b"data")
    checkpoints.remove_study(STUDY)
    checkpoints.remove_study(STUDY)
    assert checkpoints.read(STUDY, 7, attempt=1) is None
    assert checkpoints.read(f"{STUDY}/confirm", 7, attempt=1) == b"data"


@pytest.mark.parametrize("study", ["nih/" + "肺炎" * 60 + " 7", "nih/" + "Отёк лёгких " * 10 + "7"])
def test_labels_in_any_script_have_separate_checkpoints(checkpoints: Checkpoints, study: str) -> None:
    checkpoints.write(study, 7, attempt=1, data=b"search")
    checkpoints.write(f"{study}/confirm", 7, attempt=1, data=b"confirmation")
    assert checkpoints.read(study, 7, attempt=1) == b"search"
    checkpoints.remove_study(study)
    assert checkpoints.read(f"{study}/confirm", 7, attempt=1) == b"confirmation"


def test_checkpoint_with_a_changed_bit_is_passed_over_with_a_warning(
    on_disk: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    on_disk.write(STUDY, 7, attempt=1, data=b"epoch 3")
    on_disk.write(STUDY, 7, attempt=2, data=b"epoch 5")
    on_disk.write(STUDY, 8, attempt=1, data=b"another trial's")
    [newest] = Path(on_disk.folder).rglob("7.2.ckpt")
    whole = newest.read_bytes()
    for position in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        newest.write_bytes(flipped)
        assert on_disk.read(STUDY, 7, attempt=2) == b"epoch 3", f"bit {position}"
    for length in range(len(whole)):
        newest.write_bytes(whole[:length])
        assert on_disk.read(STUDY, 7, attempt=2) == b"epoch 3", f"{length} bytes"
    assert "7.2.ckpt is not used (it is damaged" in caplog.text
    assert on_disk.read(STUDY, 8, attempt=1) == b"another trial's"


def test_checkpoint_that_cannot_be_read_restarts_its_trial(
    on_disk: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    on_disk.write(STUDY, 7, attempt=1, data=b"epoch 3")
    [path] = Path(on_disk.folder).rglob("7.1.ckpt")
    path.unlink()
    path.mkdir()
    assert on_disk.read(STUDY, 7, attempt=1) is None
    assert "7.1.ckpt is not used (Is a directory)" in caplog.text


def test_planted_link_does_not_lead_a_write_to_another_file(on_disk: Checkpoints, tmp_path: Path) -> None:
    on_disk.write(STUDY, 7, attempt=1, data=b"epoch 1")
    [path] = Path(on_disk.folder).rglob("7.1.ckpt")
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"another user's file")
    path.unlink()
    path.symlink_to(theirs)
    on_disk.write(STUDY, 7, attempt=1, data=b"epoch 2")
    assert theirs.read_bytes() == b"another user's file"
    assert on_disk.read(STUDY, 7, attempt=1) == b"epoch 2"


def test_interrupted_write_leaves_the_earlier_checkpoint(on_disk: Checkpoints) -> None:
    on_disk.write(STUDY, 7, attempt=1, data=b"whole")
    folder = Path(on_disk.folder)
    (path,) = folder.rglob("*.ckpt")
    path.with_name(f"{path.name}.0a1b2c3d.tmp").write_bytes(b"ha")
    assert on_disk.read(STUDY, 7, attempt=1) == b"whole"
    on_disk.remove(STUDY, {(7, 1)})
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full, a disk that is always full")
def test_full_disk_is_named_in_one_line_and_spares_the_earlier_checkpoint(
    on_disk: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.write(STUDY, 7, attempt=1, data=b"earlier")
    open_path = Path.open

    def open_on_full_disk(path: Path, mode: str = "r") -> object:
        return open_path(Path("/dev/full"), "wb") if path.name.endswith(".tmp") else open_path(path, mode)

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(StorageError, match=r"No space left on device\): make room there") as caught:
        on_disk.write(STUDY, 7, attempt=1, data=b"x" * 10_000)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert on_disk.read(STUDY, 7, attempt=1) == b"earlier"


def test_unknown_address_is_refused_without_its_secrets(tmp_path: Path) -> None:
    assert open_checkpoints(f"file://{tmp_path}/with%20space").folder == str(tmp_path / "with space")
    assert open_checkpoints("~/checkpoints").folder == str(Path.home() / "checkpoints")
    with pytest.raises(StorageError, match=r"wasabi://bucket/checkpoints cannot be used .*name a folder") as caught:
        open_checkpoints("wasabi://key:secret@bucket/checkpoints")
    assert "secret" not in str(caught.value)


def test_removal_during_a_late_workers_write_raises_no_error(
    on_disk: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, cleared = os.fsync, []

    def while_others_clear_up(descriptor: int) -> None:
        real(descriptor)
        if not cleared:
            cleared.append(True)
            on_disk.remove(STUDY, {(7, 1)})

    monkeypatch.setattr(os, "fsync", while_others_clear_up)
    on_disk.write(STUDY, 7, attempt=1, data=b"epoch 3")
    assert cleared
    assert on_disk.read(STUDY, 7, attempt=1) == b"epoch 3"
