"""A training learns, is reproducible also after an interruption, and ends early if asked."""

import dataclasses
import io
import logging
import multiprocessing

import numpy as np
import pytest
import torch

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.metrics import accuracy, auc, average_precision, youden_threshold
from acuity.objectives.training.interface import Diverged, Hyperparameters, Interrupted, LabelledImages
from acuity.objectives.training.learner import make_learner, train_batches
from acuity.objectives.training.train import train
from support.threads import one_thread

CPU = torch.device("cpu")
BASE = Hyperparameters("test_resnet", resolution=32, batch_size=16, learning_rate=1e-2, epochs=3)


def blobs(*, images=160, side=32, share=0.4, strength=105, seed=0):
    """Noise images, two per patient, 100 for training; those with the finding have a bright patch at a random place."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(images) < share).astype(np.float32)
    pixels = rng.integers(0, 150, (images, side, side)).astype(np.uint8)
    for row in np.flatnonzero(targets):
        top, left = rng.integers(side // 4, side // 2, 2)
        pixels[row, top : top + side // 4, left : left + side // 4] += strength
    part = images * 5 // 8
    return LabelledImages(
        pixels, targets, np.arange(images) // 2, training=np.arange(part), validation=np.arange(part, images)
    )


def run(hyperparameters=BASE, data=None, *, seed=1, report=lambda *_: False, **options):
    return train(hyperparameters, data or blobs(), seed=seed, device=CPU, report=report, **options)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def uninterrupted():
    reports = []
    outcome = run(report=lambda epoch, area: reports.append((epoch, area)))
    return outcome, reports


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network_learns_the_finding(precision):
    assert run(dataclasses.replace(BASE, epochs=4, precision=precision), blobs(images=320)).auc > 0.95


def test_every_epoch_is_reported_and_the_last_auc_is_the_result(uninterrupted):
    outcome, reports = uninterrupted
    assert [epoch for epoch, _ in reports] == [1, 2, 3]
    assert reports[-1][1] == outcome.auc
    assert not outcome.stopped
    assert outcome.epochs == 3
    assert outcome.seconds > 0
    assert outcome.images_per_second > 0


def test_peak_memory_is_the_training_rise_of_its_process():
    def measured(batch_size):
        # In a separate process: this one may reuse memory of other tests.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_peak_memory_mib, (batch_size,))

    small, large = measured(8), measured(64)
    assert small > 0
    assert large - small > 30, "56 more images; the first layers alone keep half a MiB of each"


def _peak_memory_mib(batch_size):
    task = dataclasses.replace(BASE, resolution=96, batch_size=batch_size, epochs=1)
    return run(task, blobs(side=96)).peak_memory_mib


def test_metrics_are_computed_from_the_scores(uninterrupted):
    outcome, _ = uninterrupted
    data = blobs()
    known = data.targets[data.validation]
    assert outcome.scores.shape == known.shape
    assert 0 <= outcome.scores.min() < outcome.scores.max() <= 1
    assert outcome.auc == auc(known, outcome.scores)
    assert outcome.auc_se == auc_standard_error(known, outcome.scores, data.patients[data.validation])
    assert outcome.average_precision == average_precision(known, outcome.scores)
    threshold = youden_threshold(known, outcome.scores)
    assert outcome.accuracy == accuracy(known, outcome.scores, threshold=threshold)


def test_same_seed_gives_the_same_network_bit_for_bit(uninterrupted):
    torch.manual_seed(99)
    torch.rand(7)  # earlier use of the generator has no effect
    assert np.array_equal(run().scores, uninterrupted[0].scores)
    assert not np.array_equal(run(seed=2).scores, uninterrupted[0].scores)


class Stop:
    """Asks to stop at the given batch, counted over training and validation."""

    def __init__(self, at):
        self.asked, self.at = 0, at

    def __call__(self):
        self.asked += 1
        return self.asked == self.at


def epochs_of(checkpoint):
    return len(torch.load(io.BytesIO(checkpoint), weights_only=True)["aucs"])


@pytest.mark.parametrize(
    ("architecture", "stop_at"),
    [("test_resnet", 8), ("test_resnet", 16), ("test_resnet", 21), ("test_vit", 16)],  # 21: in the third validation
)
def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(architecture, stop_at):
    wanted = dataclasses.replace(BASE, architecture=architecture)
    reports, saved = [], []
    whole = run(wanted, report=lambda epoch, area: reports.append((epoch, area)))
    stop = Stop(stop_at)  # an epoch asks 6 times in training and once in validation
    with pytest.raises(Interrupted):
        run(wanted, should_stop=stop, save_checkpoint=saved.append)
    assert stop.asked == stop_at
    assert [epochs_of(data) for data in saved] == [(stop_at - 1) // 7], "that of the last finished epoch"

    torch.manual_seed(99)
    again, later = [], []
    resumed = run(
        wanted,
        report=lambda epoch, area: again.append((epoch, area)),
        load_checkpoint=lambda: saved[-1],
        save_checkpoint=later.append,
    )

    assert np.array_equal(resumed.scores, whole.scores)
    assert again == reports
    assert [epochs_of(data) for data in later] == [3]
    assert resumed.epochs == 3


def test_training_killed_after_its_last_epoch_is_not_trained_again(uninterrupted):
    saved = []
    run(save_checkpoint=saved.append)
    again, saved_again = [], []
    resumed = run(
        load_checkpoint=lambda: saved[-1],
        save_checkpoint=saved_again.append,
        report=lambda epoch, area: again.append((epoch, area)),
        should_stop=Stop(99),
    )
    assert np.array_equal(resumed.scores, uninterrupted[0].scores)
    # The new attempt has a checkpoint, since that of the earlier attempt is removed.
    assert np.array_equal(run(load_checkpoint=lambda: saved_again[-1]).scores, resumed.scores)
    assert again == uninterrupted[1]
    assert resumed.images_per_second == 0
    assert not resumed.stopped


@pytest.mark.parametrize("fault", ["truncated", "not a checkpoint", "of another seed", "of another program"])
def test_training_with_an_unusable_checkpoint_starts_from_zero_with_a_warning(uninterrupted, caplog, fault):
    saved = []
    run(save_checkpoint=saved.append, seed=5 if fault == "of another seed" else 1)
    unusable = {
        "truncated": saved[-1][:-500],
        "not a checkpoint": b"PK\x03\x04 something else",
        "of another seed": saved[-1],
        "of another program": b"",
    }[fault]
    with caplog.at_level(logging.WARNING, logger="acuity.objectives.training.checkpoint"):
        outcome = run(load_checkpoint=lambda: unusable)
    assert np.array_equal(outcome.scores, uninterrupted[0].scores)
    assert "training starts from zero" in caplog.text


def test_training_without_a_checkpoint_starts_without_a_warning(uninterrupted, caplog):
    assert np.array_equal(run(load_checkpoint=lambda: None).scores, uninterrupted[0].scores)
    assert not caplog.records


def test_report_ends_the_training_after_its_epoch(uninterrupted):
    outcome = run(report=lambda epoch, _: epoch == 2)
    assert outcome.stopped
    assert outcome.epochs == 2
    assert outcome.auc == uninterrupted[1][1][1]


def test_training_that_ends_with_its_last_epoch_is_not_stopped():
    assert not run(dataclasses.replace(BASE, epochs=1), report=lambda *_: True).stopped


def test_only_the_answer_to_the_last_finished_epoch_stops_a_resumed_training(uninterrupted):
    saved = []
    with pytest.raises(Interrupted):
        run(should_stop=Stop(16), save_checkpoint=saved.append)
    assert run(load_checkpoint=lambda: saved[-1], report=lambda epoch, _: epoch == 1).epochs == 3
    stopped = run(load_checkpoint=lambda: saved[-1], report=lambda epoch, _: epoch == 2)
    assert (stopped.epochs, stopped.stopped) == (2, True)
    assert stopped.auc == uninterrupted[1][1][1]


def test_diverging_training_ends_at_once_and_names_the_epoch():
    stop = Stop(99)
    with pytest.raises(Diverged, match="became NaN or infinite in epoch 1: lower the learning rate"):
        run(dataclasses.replace(BASE, learning_rate=1e30), should_stop=stop)
    assert stop.asked < 6


def test_memory_mapped_images_give_the_same_result_as_images_in_memory(tmp_path, uninterrupted):
    data = blobs()
    np.save(tmp_path / "images.npy", data.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    outcome = run(data=dataclasses.replace(data, images=mapped))
    assert np.array_equal(outcome.scores, uninterrupted[0].scores)


def test_rows_outside_training_and_validation_have_no_effect(uninterrupted):
    data = blobs()
    images, targets = np.full((200, 32, 32), 255, np.uint8), np.full(200, np.nan, np.float32)
    images[40:], targets[40:] = data.images, data.targets
    moved = LabelledImages(images, targets, np.arange(200) // 2, data.training + 40, data.validation + 40)
    assert np.array_equal(run(data=moved).scores, uninterrupted[0].scores)


@pytest.fixture
def watched_batches(monkeypatch):
    calls = []

    def watch(learner, loader, **options):
        calls.append(options)
        return train_batches(learner, loader, **options)

    monkeypatch.setattr("acuity.objectives.training.train.train_batches", watch)
    return calls


def test_each_epoch_has_another_order_and_drops_the_incomplete_batch(watched_batches):
    run(dataclasses.replace(BASE, epochs=2))
    first, second = (call["batches"] for call in watched_batches)
    for batches in (first, second):
        assert batches.shape == (6, 16)  # of 100 images
        assert batches.unique().numel() == 96
    assert set(map(tuple, first.tolist())).isdisjoint(map(tuple, second.tolist()))
    assert not torch.equal(watched_batches[0]["augmentation"], watched_batches[1]["augmentation"])


@pytest.mark.parametrize(("positives", "weight"), [(20, 4.0), (50, 1.0), (2, 20.0)])
def test_weight_of_positives_is_the_ratio_of_negatives_to_positives_up_to_a_limit(watched_batches, positives, weight):
    data = blobs()
    data.targets[data.training] = np.arange(100) < positives
    run(dataclasses.replace(BASE, epochs=1, augment=False), data)
    assert watched_batches[0]["positive_weight"] == weight
    assert watched_batches[0]["augmentation"] is None


def test_learning_rate_grows_with_the_root_of_the_batch_size_and_anneals():
    learner = make_learner(dataclasses.replace(BASE, batch_size=32, learning_rate=1e-3), total_steps=100, device=CPU)
    rates = []
    for _ in range(100):
        rates.append(learner.optimiser.param_groups[0]["lr"])
        learner.optimiser.step()
        learner.scheduler.step()
    assert max(rates) == pytest.approx(0.5e-3)
    assert rates[-1] < 1e-3 * max(rates)


def test_norms_and_biases_have_no_weight_decay():
    learner = make_learner(BASE, total_steps=10, device=CPU)
    for group in learner.optimiser.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (BASE.weight_decay if parameter.ndim > 1 else 0)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_network_input_enlarges_the_images(architecture):
    outcome = run(dataclasses.replace(BASE, architecture=architecture, network_input=48, epochs=2))
    assert np.isfinite(outcome.scores).all()
    enlarged = np.random.default_rng(0).integers(0, 255, (160, 32, 32)).astype(np.uint8)
    assert not np.array_equal(outcome.scores, run(data=dataclasses.replace(blobs(), images=enlarged)).scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch_size": 101},
            r"batch size is 101, must be 2 \(for batch normalisation\) to 100 \(the training images\)",
        ),
        ({"batch_size": 1}, r"batch size is 1, must be 2"),
        ({"network_input": 24}, r"network_input is 24, must be at least the resolution \(32\)"),
    ],
)
def test_impossible_hyperparameters_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        run(dataclasses.replace(BASE, **change))


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize("value", [0, 1])
def test_one_class_alone_is_refused_before_training(part, value):
    data = blobs()
    data.targets[getattr(data, part)] = value
    count = len(getattr(data, part))
    with pytest.raises(InputError, match=f"^{value * count} of {count} {part} images have the finding, both kinds"):
        run(data=data)


def test_unknown_target_in_training_is_an_assertion_error():
    data = blobs()
    data.targets[3] = np.nan
    with pytest.raises(AssertionError, match="training rows with an unknown target"):
        run(data=data)
