"""A training step that runs out of memory: the end of the trial, and the limit in the fleet's table."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sqlalchemy import Connection, text

from acuity.objectives.device.device import Device, memory_shortage
from acuity.objectives.training.interface import Hyperparameters, Outcome
from acuity.objectives.training.step_memory import largest_batch
from acuity.objectives.training.train import train
from acuity.storage.database import Database
from acuity.storage.trials import claim_study, write_attributes
from acuity.study.confirmation.nomination import Nomination, Nominee
from acuity.study.confirmation.trials import claim_confirm_trial, create_confirm_study, open_confirm_studies
from acuity.study.dataset.design import Design
from acuity.study.errors import DeviceLostError, UsageError
from acuity.study.registry import claims
from acuity.study.registry.claims import claim_trial
from acuity.study.registry.recovery import release_trial
from acuity.study.worker import attempt, batch_limit, heartbeat, loop
from acuity.study.worker import training as claimed_training
from acuity.study.worker.context import WorkerContext
from support.one_trial import registered_context, run_one, tiny_experiment


def open_context(database: Database, folder: Path, phantoms: Path, *, search: str = "") -> WorkerContext:
    """search: more lines of that section."""
    return registered_context(database, tiny_experiment(phantoms, folder, search=search))


def room_for(
    monkeypatch: pytest.MonkeyPatch, images: int, *, error: type[Exception] = torch.OutOfMemoryError
) -> list[int]:
    """Let a batch of more images run out of memory; return the list that records every batch size."""
    tried = []

    def train_in_little(hyperparameters: Hyperparameters, *args: Any, **kwargs: Any) -> Outcome:
        tried.append(hyperparameters.batch_size)
        if hyperparameters.batch_size > images:
            raise error("out of memory")
        return train(hyperparameters, *args, **kwargs)

    monkeypatch.setattr(claimed_training, "train", train_in_little)
    return tried


def table(database: Database, columns: str, source: str) -> list[Any]:
    with database.engine.connect() as connection:
        return list(connection.execute(text(f"select {columns} from {source}")).all())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])  # of PyTorch, and of numpy or Python
def test_trial_continues_at_half_the_batch_and_the_fleet_keeps_the_size_that_ran(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    context = open_context(database, tmp_path, phantoms, search='batch = "largest"')
    tried = room_for(monkeypatch, 12, error=error)
    run_one(context)
    assert tried[0] > 12 >= tried[-1]
    assert tried == [tried[0] >> halvings for halvings in range(len(tried))]
    assert table(database, "largest", "acuity.feasible_batches") == [(tried[-1],)]
    ended = table(database, "state, batch_size", "acuity.all_trials where state <> 'WAITING'")
    assert ended == [("COMPLETE", tried[-1])]


def test_memory_that_another_program_holds_changes_neither_the_budget_nor_the_fleets_limit(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(database, tmp_path, phantoms, search='batch = "largest"')
    tried = room_for(monkeypatch, 0)
    with monkeypatch.context() as held:
        held.setattr(claimed_training, "memory_shortage", lambda _: "another program holds the rest")
        with pytest.raises(UsageError, match="another program holds the rest"):
            run_one(context)
        assert min(tried) < 4
        (known,) = table(database, "largest", "acuity.feasible_batches")
        assert known[0] >= tried[0], "the limit of this device is unchanged"
        ended = table(database, "state", "acuity.all_trials where state in ('COMPLETE', 'PRUNED')")
        assert ended == [], "no budget was spent"
    room_for(monkeypatch, 999)
    run_one(context)  # once the memory is free again the same trial continues
    ended = table(database, "state, origin, batch_size", "acuity.all_trials where state in ('COMPLETE', 'PRUNED')")
    assert ended == [("COMPLETE", 0, tried[0])]


def test_network_that_does_not_fit_although_the_memory_is_free_is_infeasible(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(database, tmp_path, phantoms, search='batch = "largest"')
    room_for(monkeypatch, 0)
    run_one(context)
    ended = table(database, "state, reason", "acuity.all_trials where state <> 'WAITING'")
    assert [state for state, _ in ended] == ["PRUNED"]
    assert ended[0].reason.startswith("out of memory with a batch of ")


@pytest.mark.parametrize("batch_size", [3, 12])
def test_nominee_whose_batch_runs_out_of_memory_is_left_to_a_larger_device(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    context = open_context(database, tmp_path, phantoms)
    parameters = {"resolution": 16, "architecture": "test_resnet", "learning_rate": 1e-3, "batch_size_exponent": 2}
    nominee = Nominee(0, 16, 0.7, parameters, batch_size, 64, seconds=1.0)
    nomination = Nomination("Nodule", (nominee,), {16: 1}, ())
    design = Design("held-out", seeds=3)
    create_confirm_study(database, context.experiment, nomination, design=design, patients=())
    studies = open_confirm_studies(database, context.experiment)
    claim = claim_confirm_trial(database, context.registered, studies, can_hold=lambda *_: True)
    assert claim is not None
    room_for(monkeypatch, batch_size - 1)
    attempt.run_attempt(context, claim)
    ended = table(database, "state, requeued", "acuity.all_trials where confirm and state <> 'WAITING'")
    assert ended == [("FAIL", True)], "another attempt at it waits, and it is no failure of the nominee"
    assert table(database, "largest", "acuity.feasible_batches") == [(batch_size // 2,)]


def test_gpu_memory_that_other_programs_hold_is_found_by_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    share = Device(torch.device("cuda"), "NVIDIA H100", threads=1, memory_budget_bytes=40 * 2**30)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 2**30)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (38 * 2**30, 80 * 2**30))
    assert memory_shortage(share) is None
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (24 * 2**30, 80 * 2**30))
    assert memory_shortage(replace(share, memory_budget_bytes=200 * 2**30, workers=3)) is None, "more than it has"
    message = memory_shortage(share)
    assert message is not None
    assert "has 25.0 GiB free of the 40.0 GiB that are this worker's share" in message


def test_trial_on_a_device_that_no_longer_computes_is_left_to_others_and_the_worker_ends(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Outcome:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    context = open_context(database, tmp_path, phantoms)
    monkeypatch.setattr(claimed_training, "train", fails)
    run_one(context)
    assert table(database, "state", "acuity.all_trials where state <> 'WAITING'") == [("FAIL",)], (
        "the device works, so the trial fails"
    )
    monkeypatch.setattr(attempt, "is_usable", lambda _: False)
    with pytest.raises(DeviceLostError, match="CPU no longer computes: CUDA error"):
        run_one(context)
    ended = table(database, "state", "acuity.all_trials where state <> 'WAITING' order by number")
    states = [state for (state,) in ended]
    assert states == ["FAIL", "RUNNING"], "no heartbeat, as after a crash"


def test_fixed_batch_stays_feasible_while_another_program_holds_the_memory(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(database, tmp_path, phantoms, search="batch = 16")
    room_for(monkeypatch, 12)
    monkeypatch.setattr(claimed_training, "memory_shortage", lambda _: "another program holds the rest")
    with pytest.raises(UsageError, match="another program holds the rest"):
        run_one(context)
    assert table(database, "state", "acuity.all_trials where state in ('COMPLETE', 'PRUNED')") == []
    (known,) = table(database, "largest", "acuity.feasible_batches")
    assert known[0] >= 16


def test_trial_whose_batch_is_capped_by_the_elements_of_a_tensor_names_the_cap(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(database, tmp_path, phantoms, search='batch = "largest"')
    monkeypatch.setattr(batch_limit, "MAX_ELEMENTS", 0)
    monkeypatch.setattr(batch_limit, "largest_countable_batch", lambda _: 7)
    tried = room_for(monkeypatch, 999)
    run_one(context)
    ended = table(database, "state, batch_size, batch_cap", "acuity.all_trials where state <> 'WAITING'")
    assert (ended, tried) == ([("COMPLETE", 7, "max_elements")], [7])


def test_memory_is_measured_before_or_after_a_claim_never_during_it(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(database, tmp_path, phantoms, search='batch = "largest"')
    claim = claim_trial(context.database, context.registered, context.studies, can_hold=lambda *_: True)
    assert claim is not None
    with claim_study(database, claim.study._study_id):
        (trial,) = [each for each in claim.study.get_trials() if each._trial_id == claim.trial_id]
    study = {claim.label: claim.study}
    write_attributes(database, claim.trial_id, {"batch_size": 8})
    release_trial(database, claim, reason="its worker had to stop")
    held, measured_under_lock = [0], []

    @contextmanager
    def watched(*arguments: Any, **keywords: Any) -> Iterator[Connection]:
        with claim_study(*arguments, **keywords) as connection:
            held[0] += 1
            try:
                yield connection
            finally:
                held[0] -= 1

    def measure(*arguments: Any) -> int:
        measured_under_lock.append(held[0])
        return largest_batch(*arguments)

    monkeypatch.setattr(claims, "claim_study", watched)
    monkeypatch.setattr(batch_limit, "largest_batch", measure)
    again = loop._claim(context, study, {})
    assert again is not None
    assert again.origin == trial.number, "the interrupted trial is resumed, not a new one"
    assert measured_under_lock == [0]


def test_fixed_batch_that_does_not_fit_is_infeasible_not_halved(
    database: Database, tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(database, tmp_path, phantoms, search="batch = 16")
    room_for(monkeypatch, 12)
    run_one(context)
    ended = table(database, "state, batch_size, reason", "acuity.all_trials where state <> 'WAITING'")
    assert ended == [("PRUNED", 16, "out of memory with the batch of 16 on CPU")]


@pytest.mark.parametrize("grace_s", [2, 20, 180])
def test_worker_that_has_been_idle_for_long_still_requeues_trials(
    grace_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It requeues none before it has reached the database for a grace period without a break."""
    clock = [0.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    contact = heartbeat.DatabaseContact(longest_gap_s=grace_s / 2)
    while clock[0] < 1000:
        clock[0] += 1.5 * loop.idle_pause_s(clock[0], grace_s=grace_s)
        contact.seen()
    assert contact.unbroken_s() > 900
