"""Results of a label against counts of pairs and calculations by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import t as student
from sklearn.metrics import accuracy_score, average_precision_score, roc_curve

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.study.confirmation.nomination import SkippedResolution
from acuity.study.confirmation.protocol import Finalist, LabelProtocol, Run
from acuity.study.confirmation.verdict import conclude_label
from acuity.study.dataset.design import Design

HELD_OUT = Design("held-out", seeds=3)
RUN = Run(trial_id=0, checkpoint_study="s", origin=0, attempt=1, seed=0, validation_auc=0.8)


def protocol(
    resolutions: Sequence[int], *, reference: int, seeds: int = 3, skipped: Sequence[SkippedResolution] = ()
) -> LabelProtocol:
    finalists = tuple(
        Finalist(resolution, "resnet34", 32, 64, 1e-3, trials=12, nominees=1, runs=(RUN,) * seeds)
        for resolution in resolutions
    )
    return LabelProtocol("Mass", reference, finalists, skipped=tuple(skipped))


def table(scores: np.ndarray, *, positives: int, seed: int = 0) -> pd.DataFrame:
    """Scores of one seed with one image per patient, positives first, and as many validation images as test images.

    Half of the images are of women. scores: logits.
    """
    images = len(scores)
    target = (np.arange(images) < positives).astype(np.int8)
    test = pd.DataFrame(
        {
            "image": [f"i{n}" for n in range(images)],
            "patient": [f"p{n}" for n in range(images)],
            "part": "test",
            "target": target,
            "view": np.where(np.arange(images) % 3 == 0, "AP", "PA"),
            "sex": np.where(np.arange(images) % 2 == 0, "F", "M"),
            "age_band": "40-59",
            "score": expit(scores),
        }
    )
    noise = np.random.default_rng(seed).normal(scale=0.3, size=images)
    return pd.concat([test.assign(part="validation", score=expit(target * 0.4 + noise)), test], ignore_index=True)


def seeds_of(
    positives: int, *, gap: float, images: int = 400, jitter: float = 0.02, base: int = 1
) -> list[pd.DataFrame]:
    """Three seeds of a resolution. Positives score higher by the gap, and all seeds share the patients' variance."""
    own = np.random.default_rng(base).normal(size=images)
    shift = np.where(np.arange(images) < positives, gap, 0.0)
    return [
        table(own + shift + np.random.default_rng(base + seed).normal(scale=jitter, size=images), positives=positives)
        for seed in (1, 2, 3)
    ]


def auc_by_pairs(frame: pd.DataFrame) -> float:
    test = frame[frame["part"] == "test"]
    above, below = (test.loc[test["target"] == kind, "score"].to_numpy() for kind in (1, 0))
    return float(np.mean((above[:, None] > below) + 0.5 * (above[:, None] == below)))


def test_aucs_and_noninferiority_test_agree_with_counts_of_pairs() -> None:
    tables = {64: seeds_of(100, gap=1.45, jitter=0.3), 128: seeds_of(100, gap=1.5, jitter=0.3, base=9)}
    found = conclude_label(protocol([64, 128], reference=128), tables, HELD_OUT, margin=0.05)
    aucs = {resolution: [auc_by_pairs(frame) for frame in seeds] for resolution, seeds in tables.items()}
    for each in found["by_resolution"]:
        assert each["auc"] == pytest.approx(np.mean(aucs[each["resolution"]]))
        assert each["seed_sd"] == pytest.approx(np.std(aucs[each["resolution"]], ddof=1))
    (step,) = found["steps"]
    difference = np.mean(aucs[64]) - np.mean(aucs[128])
    assert step["difference"] == pytest.approx(difference)

    # DeLong 1988 by pairs, with components averaged over seeds and one image per patient.
    components = {resolution: components_by_pairs(seeds) for resolution, seeds in tables.items()}
    # The standard errors are moved to two AUCs that differ by the margin and have the same mean.
    middle = (np.mean(aucs[64]) + np.mean(aucs[128])) / 2
    at_null = {64: middle - 0.025, 128: middle + 0.025}
    found_at = {resolution: np.mean(each) for resolution, each in aucs.items()}
    slopes = {each: at_null[each] * (1 - at_null[each]) / (found_at[each] * (1 - found_at[each])) for each in aucs}
    assert slopes[64] > 1 > slopes[128]
    variance = 0.0
    for kind in (0, 1):
        both = slopes[64] * components[64][kind] - slopes[128] * components[128][kind]
        variance += np.var(both, ddof=1) / len(both)
    variance += sum(slopes[resolution] ** 2 * np.var(aucs[resolution], ddof=1) / 3 for resolution in (64, 128))
    statistic = (difference + 0.05) / math.sqrt(variance)
    # These degrees of freedom are of the difference, those of the test are at the moved AUCs: they are close.
    assert 0.001 < step["p_value"] < 0.4
    assert step["p_value"] == pytest.approx(student.sf(statistic, step["degrees_of_freedom"]), rel=0.02)


def components_by_pairs(frames: list[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives below each positive, and share of positives above each negative, averaged over seeds."""
    of_seeds = []
    for frame in frames:
        test = frame[frame["part"] == "test"]
        above, below = (test.loc[test["target"] == kind, "score"].to_numpy() for kind in (1, 0))
        wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
        of_seeds.append((wins.mean(axis=1), wins.mean(axis=0)))
    positives, negatives = zip(*of_seeds, strict=True)
    return np.mean(positives, axis=0), np.mean(negatives, axis=0)


def test_smallest_noninferior_resolution_is_shown() -> None:
    tables = {32: seeds_of(100, gap=0.5), 64: seeds_of(100, gap=1.5), 128: seeds_of(100, gap=1.5, base=1)}
    found = conclude_label(protocol([32, 64, 128], reference=128), tables, HELD_OUT, margin=0.02)
    verdict = found["smallest_adequate"]
    assert (verdict["verdict"], verdict["resolution"], verdict["margin"]) == ("shown", 64, 0.02)
    assert found["reference"]["resolution"] == found["best"]["resolution"] == 128
    assert [(step["resolution"], step["reference"]) for step in found["steps"]] == [(64, 128), (32, 128), (32, 64)]
    assert found["not_worse"] == [64, 128]
    assert verdict["sentence"].startswith(
        "Mass needs 64 px: shown to lose less than 0.02 AUC against every larger confirmed resolution (closest: 128 px"
    )
    assert "The reference is 128 px" in verdict["sentence"]
    assert "best of 12 trials" in verdict["sentence"]
    assert "32 px is shown to lose more than 0.02 (\N{MINUS SIGN}0." in verdict["sentence"]


def test_sentence_has_the_singular_for_one_trial() -> None:
    label = protocol([32, 64], reference=64)
    once = replace(label, finalists=tuple(replace(each, trials=1) for each in label.finalists))
    found = conclude_label(once, {32: seeds_of(100, gap=1.5), 64: seeds_of(100, gap=1.5, base=1)}, HELD_OUT, margin=0.1)
    assert "; best of 1 trial)." in found["smallest_adequate"]["sentence"]


def test_largest_resolution_is_the_verdict_where_all_smaller_resolutions_are_worse() -> None:
    tables = {32: seeds_of(100, gap=0.2), 64: seeds_of(100, gap=2.0)}
    found = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)
    assert (found["smallest_adequate"]["verdict"], found["smallest_adequate"]["resolution"]) == ("shown", 64)
    assert found["smallest_adequate"]["against"] is found["smallest_adequate"]["p_value"] is None
    sentence = found["smallest_adequate"]["sentence"]
    assert sentence.startswith("Mass needs 64 px, the largest confirmed resolution. 32 px is shown to lose more")


def test_reference_that_loses_more_than_the_margin_against_a_larger_resolution_is_not_named() -> None:
    tables = {32: seeds_of(100, gap=1.0), 64: seeds_of(100, gap=1.0), 128: seeds_of(100, gap=2.0)}
    found = conclude_label(protocol([32, 64, 128], reference=32), tables, HELD_OUT, margin=0.02)
    verdict = found["smallest_adequate"]
    assert (verdict["verdict"], verdict["resolution"]) == ("shown", 128)
    assert [(step["resolution"], step["reference"]) for step in found["steps"]] == [(64, 128)]
    assert "Mass needs 128 px, the largest confirmed resolution. 64 px is shown to lose more" in verdict["sentence"]
    assert "The reference is 32 px" in verdict["sentence"]


def test_smallest_resolution_as_reference_is_tested_against_every_larger_one() -> None:
    tables = {32: seeds_of(40, gap=1.0, images=120, base=5), 64: seeds_of(40, gap=1.1, images=120, base=50)}
    verdict = conclude_label(protocol([32, 64], reference=32), tables, HELD_OUT, margin=0.02)["smallest_adequate"]
    assert (verdict["verdict"], verdict["resolution"], verdict["against"]) == ("undecided", None, 64)
    assert 0.05 < verdict["p_value"] < 0.95
    assert "Whether 32 px loses less than 0.02 AUC against 64 px is open" in verdict["sentence"]
    alike = {32: seeds_of(100, gap=1.5), 64: seeds_of(100, gap=1.5), 128: seeds_of(100, gap=1.5)}
    verdict = conclude_label(protocol([32, 64, 128], reference=32), alike, HELD_OUT, margin=0.02)["smallest_adequate"]
    assert (verdict["verdict"], verdict["resolution"]) == ("shown", 32)
    assert verdict["p_value"] < 0.05
    assert "No smaller resolution was confirmed." in verdict["sentence"]


def test_sentence_names_a_larger_resolution_that_is_better_by_less_than_the_margin() -> None:
    tables = {32: seeds_of(100, gap=1.50, jitter=0.01), 64: seeds_of(100, gap=1.56, jitter=0.01)}
    found = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.04)
    assert found["smallest_adequate"]["resolution"] == 32
    assert "64 px is shown to be better, by less than 0.04 (+0.008, 95 % +0." in found["smallest_adequate"]["sentence"]


def test_sentence_and_json_name_the_skipped_resolutions_with_the_reason() -> None:
    tables = {32: seeds_of(100, gap=1.5), 64: seeds_of(100, gap=1.5)}
    skipped = (
        SkippedResolution(16, "below_best", 0.658),
        SkippedResolution(128, "no_complete_trial", None),
        SkippedResolution(256, "not_named", 0.7),
    )
    found = conclude_label(protocol([32, 64], reference=64, skipped=skipped), tables, HELD_OUT, margin=0.02)
    sentence = found["smallest_adequate"]["sentence"]
    assert "16 px was not confirmed (validation AUC 0.658, more than 0.05 below the best)." in sentence
    assert "128 px was not confirmed (no complete trial)." in sentence
    assert "256 px was not confirmed (the experiment names other resolutions to confirm)." in sentence
    assert found["skipped"][1] == {"resolution": 128, "reason": "no_complete_trial", "validation_auc": None}


def test_reference_at_chance_has_no_verdict() -> None:
    tables = {32: seeds_of(100, gap=0.0), 64: seeds_of(100, gap=0.05)}
    verdict = conclude_label(protocol([32, 64], reference=32), tables, HELD_OUT, margin=0.02)["smallest_adequate"]
    assert (verdict["verdict"], verdict["reason"], verdict["resolution"]) == ("not_estimable", "chance", None)
    assert "the reference of 32 px is not shown to be better than chance (AUC 0." in verdict["sentence"]


def test_networks_that_order_every_pair_wrongly_have_results_without_a_ratio() -> None:
    """Possible with few patients, as in an external image set: the ratio would divide by an AUC of 0."""
    wrong = [table(np.where(np.arange(400) < 100, -1.0, 1.0), positives=100, seed=seed) for seed in (1, 2, 3)]
    found = conclude_label(protocol([32, 64], reference=64), {32: wrong, 64: wrong}, HELD_OUT, margin=0.02)
    assert found["reference"]["auc"] == 0
    assert found["ratio"] is None
    assert found["smallest_adequate"]["reason"] == "chance"


def test_fewer_than_ten_negative_patients_are_not_estimable() -> None:
    tables = {32: seeds_of(111, gap=1.0, images=120), 64: seeds_of(111, gap=1.0, images=120)}
    verdict = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)["smallest_adequate"]
    assert (verdict["verdict"], verdict["reason"]) == ("not_estimable", "negative_patients")
    assert verdict["sentence"] == "Mass: not estimable, with 9 negative patients; 10 are needed."


def test_few_patients_are_undecided_with_the_number_that_would_decide() -> None:
    tables = {32: seeds_of(40, gap=1.0, images=120, base=5), 64: seeds_of(40, gap=1.1, images=120, base=50)}
    found = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)
    verdict = found["smallest_adequate"]
    assert (verdict["verdict"], verdict["resolution"]) == ("undecided", None)
    assert verdict["more_positive_patients"] > 0
    assert f"About {verdict['more_positive_patients']:,} more positive patients" in verdict["sentence"]


def test_fewer_than_thirty_positive_patients_are_not_estimable() -> None:
    tables = {32: seeds_of(29, gap=1.0), 64: seeds_of(29, gap=1.0)}
    verdict = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)["smallest_adequate"]
    assert (verdict["verdict"], verdict["resolution"]) == ("not_estimable", None)
    assert verdict["sentence"] == "Mass: not estimable, with 29 positive patients; 30 are needed."


def test_metrics_of_the_paper_agree_with_scikit_learn() -> None:
    tables = {64: seeds_of(100, gap=1.4), 320: seeds_of(100, gap=1.6)}
    found = conclude_label(protocol([64, 320], reference=320), tables, HELD_OUT, margin=0.02)
    small = next(each for each in found["by_resolution"] if each["resolution"] == 64)
    accuracies, precisions, sensitivities = [], [], []
    for frame in tables[64]:
        own, test = (frame[frame["part"] == part] for part in ("validation", "test"))
        alarms, hits, thresholds = roc_curve(own["target"], own["score"], drop_intermediate=False)
        threshold = thresholds[np.argmax(hits - alarms)]
        accuracies.append(accuracy_score(test["target"], test["score"] >= threshold))
        precisions.append(average_precision_score(test["target"], test["score"]))
        alarms, hits, _ = roc_curve(test["target"], test["score"], drop_intermediate=False)
        sensitivities.append(hits[alarms <= 0.1].max())
    for key, values in (
        ("accuracy", accuracies), ("average_precision", precisions), ("sensitivity_at_90_specificity", sensitivities)
    ):  # fmt: skip
        assert small[key]["mean"] == pytest.approx(np.mean(values)), key
        assert small[key]["sd"] == pytest.approx(np.std(values, ddof=1)), key
    ratio = found["ratio"]
    assert (ratio["resolution"], ratio["reference"]) == (64, 320)
    means = [np.mean([auc_by_pairs(frame) for frame in tables[resolution]]) for resolution in (64, 320)]
    assert ratio["ratio"] == pytest.approx(means[0] / means[1])


def test_subgroup_has_the_statistics_of_its_images() -> None:
    tables = {32: seeds_of(100, gap=1.0), 64: seeds_of(100, gap=1.5)}
    found = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)
    groups = {(each["by"], each["group"], each["resolution"]): each for each in found["subgroups"]}
    assert set(groups) == {
        (by, group, resolution)
        for by, group in [("view", "AP"), ("view", "PA"), ("sex", "F"), ("sex", "M"), ("age_band", "40-59")]
        for resolution in (32, 64)
    }
    women = [frame[frame["sex"] == "F"] for frame in tables[32]]
    assert groups["sex", "F", 32]["auc"] == pytest.approx(np.mean([auc_by_pairs(frame) for frame in women]))
    assert groups["sex", "F", 32]["positive_patients"] == 50
    whole = next(each for each in found["by_resolution"] if each["resolution"] == 32)
    assert groups["age_band", "40-59", 32]["auc_low"] == pytest.approx(whole["auc_low"])


def test_only_a_subgroup_with_too_few_patients_has_no_auc() -> None:
    tables = {32: seeds_of(60, gap=1.0), 64: seeds_of(60, gap=1.0)}
    for frames in tables.values():
        for frame in frames:
            frame.loc[frame["image"] == "i0", "sex"] = "X"
    found = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)
    assert {each["auc"] for each in found["subgroups"] if each["group"] == "X"} == {None}
    assert all(each["auc"] > 0.5 for each in found["subgroups"] if each["group"] != "X")


def test_results_are_json_and_the_bootstrap_agrees() -> None:
    tables = {32: seeds_of(100, gap=1.0), 64: seeds_of(100, gap=1.5)}
    found = conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["check"]["patient_se_bootstrap"] == pytest.approx(found["check"]["patient_se"], rel=0.15)


def cross_fitted(
    resolutions: Sequence[int], *, reference: int, folds: int = 3
) -> tuple[LabelProtocol, dict[int, list[pd.DataFrame]], Design]:
    """A protocol with networks of 3 of 4 folds, and its tables: fold k has its own 60 test patients, a third positive.

    Networks of fold k score all images higher by k, so that scores of two folds do not compare.
    """
    finalists = tuple(
        Finalist(px, "resnet34", 32, 64, 1e-3, 12, 1, tuple(replace(RUN, fold=fold) for fold in range(folds)))
        for px in resolutions
    )
    tables: dict[int, list[pd.DataFrame]] = {}
    for px in resolutions:
        tables[px] = []
        for fold in range(folds):
            own = np.random.default_rng(fold).normal(size=60)
            noise = np.random.default_rng(100 * px + fold).normal(scale=0.3, size=60)
            frame = table(own + noise + 1.3 * (np.arange(60) < 20) + fold, positives=20, seed=px + fold)
            of_fold = frame["part"] == "test"
            frame.loc[of_fold, "patient"] = [f"f{fold}p{number}" for number in range(60)]
            tables[px].append(frame)
    return (
        LabelProtocol("Mass", reference, finalists, ()),
        tables,
        Design("cross-fitted", folds=4, min_folds=3, folds_sha256="of the folds"),
    )


def test_cross_fitted_aucs_and_intervals_agree_with_pairs_within_folds() -> None:
    label, tables, design = cross_fitted([32, 64], reference=64)
    found = conclude_label(label, tables, design, margin=0.1)
    assert found["design"] == asdict(design)
    assert (found["images"], found["patients"], found["positive_patients"]) == (180, 180, 60)
    pooled_components = {px: [components_by_pairs([frame]) for frame in frames] for px, frames in tables.items()}
    for each in found["by_resolution"]:
        px = each["resolution"]
        aucs = [auc_by_pairs(frame) for frame in tables[px]]
        assert each["auc"] == pytest.approx(np.mean(aucs))
        assert each["seed_aucs"] == pytest.approx(aucs)
        validation = [
            auc_by_pairs(frame.assign(part=frame["part"].map({"validation": "test"}))) for frame in tables[px]
        ]
        assert each["seed_sd"] == pytest.approx(np.std(validation, ddof=1)), "over networks, on validation patients"
        variance = sum(np.var(kind, ddof=1) / len(kind) for fold in pooled_components[px] for kind in fold) / 9
        assert each["se"] == pytest.approx(math.sqrt(variance + np.var(validation, ddof=1) / 3))
        assert each["seeds"] == 3
    assert found["check"]["patient_se_bootstrap"] == pytest.approx(found["check"]["patient_se"], rel=0.15)
    groups = {(each["group"], each["resolution"]): each for each in found["subgroups"]}
    women = [auc_by_pairs(frame[frame["sex"] == "F"]) for frame in tables[32]]
    assert groups["F", 32]["auc"] == pytest.approx(np.mean(women))
    assert groups["F", 32]["positive_patients"] == 30
    whole = next(each for each in found["by_resolution"] if each["resolution"] == 32)
    assert groups["F", 32]["seed_sd"] == whole["seed_sd"], "over networks, on all validation patients"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def vary_by_fold(tables: dict[int, list[pd.DataFrame]], step: float) -> None:
    """Raise the scores of positive validation patients by this step from fold to fold."""
    for px, frames in tables.items():
        for fold, frame in enumerate(frames):
            of_validation = frame["part"] == "validation"
            moved = logit(frame["score"]) + frame["target"] * (step * fold + 0.001 * px)
            frame.loc[of_validation, "score"] = expit(moved[of_validation])


def test_undecided_cross_fitted_label_names_the_number_of_folds_that_would_decide() -> None:
    label, tables, design = cross_fitted([32, 64], reference=64)
    vary_by_fold(tables, 0.3)  # networks differ more on validation patients than the test patients of a fold do
    verdict = conclude_label(label, tables, design, margin=0.1)["smallest_adequate"]
    assert verdict["verdict"] == "undecided"
    assert f"{3 + verdict['more_networks']} trained folds in place of 3 would decide it" in verdict["sentence"]
    assert "Whether 32 px loses less than 0.1 AUC against 64 px is open" in verdict["sentence"]


def test_subgroup_without_validation_patients_has_the_auc_of_its_test_patients() -> None:
    label, tables, design = cross_fitted([32, 64], reference=64)
    for frame in (frame for frames in tables.values() for frame in frames):
        frame.loc[(frame["part"] == "validation") & (frame["sex"] == "F") & (frame["target"] == 1), "sex"] = "M"
    found = conclude_label(label, tables, design, margin=0.1)
    women = {each["resolution"]: each for each in found["subgroups"] if each["group"] == "F"}
    assert women[32]["auc"] == pytest.approx(
        np.mean([auc_by_pairs(frame[frame["sex"] == "F"]) for frame in tables[32]])
    )
    assert women[32]["auc_low"] < women[32]["auc"] < women[32]["auc_high"]


@pytest.mark.parametrize(
    ("folds", "advice"),
    [
        (
            4,
            "The remaining fold adds both, but decides it with less than 80 % power. `acuity confirm FILE` with "
            "min_folds = 4 under [confirm] trains 1 more fold. This is another use of the test patients.",
        ),
        (
            5,
            "The remaining 2 folds add both, but decide it with less than 80 % power. `acuity confirm FILE` with "
            "min_folds = 5 under [confirm] trains 2 more folds.",
        ),
        (3, None),
    ],
    ids=["one fold is left", "two folds are left", "all folds are trained"],
)
def test_undecided_label_names_the_folds_that_are_not_trained(folds: int, advice: str | None) -> None:
    label, tables, design = cross_fitted([32, 64], reference=64)
    verdict = conclude_label(label, tables, replace(design, folds=folds), margin=0.02)["smallest_adequate"]
    assert verdict["verdict"] == "undecided"
    sentence = verdict["sentence"]
    assert "Neither more patients alone nor more networks alone would decide it." in sentence
    assert ", at least \N{MINUS SIGN}0." in sentence
    if advice is None:
        assert "fold" not in sentence
    else:
        assert advice in sentence


def test_folds_that_are_not_trained_count_with_their_patients_and_networks() -> None:
    label, tables, design = cross_fitted([32, 64], reference=64)
    vary_by_fold(tables, 0.02)
    sentences = [
        conclude_label(label, tables, replace(design, folds=folds), margin=0.05)["smallest_adequate"]["sentence"]
        for folds in (3, 20)
    ]
    assert "Neither more patients alone nor more networks alone would decide it." in sentences[0]
    assert (
        "About 14 trained folds in place of 3 would decide it. `acuity confirm FILE` with min_folds = 14 under "
        "[confirm] trains 11 more folds. This is another use of the test patients." in sentences[1]
    )


def test_sentence_on_external_images_names_no_remaining_fold() -> None:
    """A further fold adds no external patients."""
    label, tables, design = cross_fitted([32, 64], reference=64)
    external = {}
    for px, frames in tables.items():
        others = seeds_of(40, gap=1.0, images=120, jitter=0.5, base=7)
        for seed, other in enumerate(others):
            other["score"] = expit(logit(other["score"]) + other["target"] * (0.4 * seed + 0.001 * px))
        external[px] = [
            pd.concat([own[own["part"] == "validation"], other[other["part"] == "test"].assign(part="external")])
            for own, other in zip(frames, others, strict=True)
        ]
    verdict = conclude_label(label, external, design, margin=0.02, part="external")["smallest_adequate"]
    assert "Neither more patients alone nor more networks alone would decide it." in verdict["sentence"]
    assert "fold" not in verdict["sentence"]


def test_networks_of_a_cross_fitted_confirmation_all_score_external_images() -> None:
    label, tables, design = cross_fitted([32, 64], reference=64)
    external = seeds_of(100, gap=1.0)
    both = {
        px: [
            pd.concat([own[own["part"] == "validation"], other[other["part"] == "test"].assign(part="external")])
            for own, other in zip(frames, external, strict=True)
        ]
        for px, frames in tables.items()
    }
    found = conclude_label(label, both, design, margin=0.1, part="external")
    assert found["images"] == 400
    assert found["by_resolution"][0]["auc"] == pytest.approx(np.mean([auc_by_pairs(frame) for frame in external]))


def test_one_positive_patient_is_rejected() -> None:
    tables = {32: seeds_of(1, gap=1.0), 64: seeds_of(1, gap=1.0)}
    with pytest.raises(InputError, match="1 patients with the finding"):
        conclude_label(protocol([32, 64], reference=64), tables, HELD_OUT, margin=0.02)


def test_the_validation_error_of_equal_networks_is_that_of_one_network() -> None:
    one = seeds_of(100, gap=1.0)[0]
    found = conclude_label(protocol([32], reference=32), {32: [one, one, one]}, HELD_OUT, margin=0.02)
    validation = one[one["part"] == "validation"]
    expected = auc_standard_error(validation["target"], validation["score"], validation["patient"].to_numpy())
    (entry,) = found["by_resolution"]
    assert entry["validation_se"] == pytest.approx(expected)
