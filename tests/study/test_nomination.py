"""Nomination of configurations for the confirmation."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from acuity.study.confirmation.nomination import SkippedResolution, nominate_label
from acuity.study.errors import UsageError

RESOLUTIONS = (32, 64, 128, 256)


def trial(resolution: int, auc: float | None, *, number: int = 0, auc_se: float = 0.01) -> FrozenTrial:
    """A finished trial. Without an AUC it is pruned."""
    made = create_trial(
        state=TrialState.PRUNED if auc is None else TrialState.COMPLETE,
        value=auc,
        params={"resolution": resolution, "learning_rate": 1e-3},
        distributions={
            "resolution": CategoricalDistribution(RESOLUTIONS),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        },
        user_attrs={"batch_size": 32, "feasible_batch_size": 64, "seconds": 2.0, "auc_se": auc_se},
    )
    made.number = number
    return made


SEARCH = [
    trial(resolution, auc, number=number)
    for number, (resolution, auc) in enumerate(
        [
            (32, 0.60),
            (64, 0.74),
            (128, 0.85),
            (256, 0.82),
            (128, 0.90),
            (256, 0.85),
            (128, 0.85),
            (128, 0.88),
            (64, None),
        ]
    )
]


def test_resolutions_near_the_best_the_smallest_and_the_largest_are_confirmed() -> None:
    nomination = nominate_label("Mass", SEARCH, resolutions=RESOLUTIONS, only=None)
    assert nomination.resolutions == (32, 128, 256), "256 px is .05 below the best AUC, 64 px is .16 below"
    assert nomination.trials == {32: 1, 128: 4, 256: 2}
    assert nomination.skipped == (SkippedResolution(64, "below_best", 0.74),)


def test_largest_resolution_is_confirmed_also_if_it_is_far_below_the_best() -> None:
    search = [trial(32, 0.72), trial(64, 0.726), trial(128, 0.66), trial(256, 0.658)]
    nomination = nominate_label("Effusion", search, resolutions=RESOLUTIONS, only=None)
    assert nomination.resolutions == (32, 64, 256)
    assert nomination.skipped == (SkippedResolution(128, "below_best", 0.66),)


def test_resolution_whose_few_validation_patients_do_not_show_the_gap_is_confirmed() -> None:
    """The AUC of .90 is .06 below the best, with standard errors of .04 or .003 at both."""
    for auc_se, confirmed in ((0.04, (32, 64, 128)), (0.003, (32, 128))):
        search = [trial(px, auc, auc_se=auc_se) for px, auc in ((32, 0.50), (64, 0.90), (128, 0.96))]
        assert nominate_label("Nodule", search, resolutions=RESOLUTIONS, only=None).resolutions == confirmed


def test_three_best_configurations_of_each_resolution_are_nominated_and_the_earlier_of_equals() -> None:
    nomination = nominate_label("Mass", SEARCH, resolutions=RESOLUTIONS, only=None, nominees=3)
    assert [(nominee.resolution, nominee.number) for nominee in nomination.nominees] == [
        (32, 0), (128, 4), (128, 7), (128, 2), (256, 5), (256, 3)
    ]  # fmt: skip
    assert nomination.nominees[1].parameters == {"resolution": 128, "learning_rate": 1e-3}
    assert nomination.nominees[1].batch_size == 32


def test_experiment_file_can_name_the_resolutions() -> None:
    nomination = nominate_label("Mass", SEARCH, resolutions=RESOLUTIONS, only=(256, 64))
    assert nomination.resolutions == (64, 256)
    assert nomination.skipped == (SkippedResolution(32, "not_named", 0.6), SkippedResolution(128, "not_named", 0.9))


def test_named_resolution_without_complete_trial_is_rejected() -> None:
    pruned = [*SEARCH[2:], trial(32, None)]
    nomination = nominate_label("Mass", pruned, resolutions=RESOLUTIONS, only=None)
    assert nomination.resolutions == (128, 256)
    assert nomination.skipped == tuple(SkippedResolution(each, "no_complete_trial", None) for each in (32, 64))
    with pytest.raises(UsageError, match="label Mass: 32 px has no complete trial, nothing to confirm there"):
        nominate_label("Mass", pruned, resolutions=RESOLUTIONS, only=(32,))
    with pytest.raises(UsageError, match="1 trial, none of them complete"):
        nominate_label("Mass", [trial(32, None)], resolutions=RESOLUTIONS, only=None)
