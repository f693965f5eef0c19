"""Claim: Acuity names a resolution that is too small in at most 5 %, and its intervals cover known AUCs in 93 to 97 %.

Scores are drawn from a binormal model, so that each resolution's AUC is known exactly. A patient has several correlated
images (3.6 on average, as in NIH). All networks score the same images. One part of the score variance is specific to
the resolution, one to the seed, and seeds differ in skill.

The verdict comes first. The reference is the resolution with the highest AUC on validation patients, drawn with the
same networks. A named resolution is too small if a larger one is better by the margin or more. In each of seven shapes
of AUC against resolution, with 3 and 5 seeds and three numbers of positive patients, a verdict is too small in at most
5 % (+ two Monte Carlo standard errors). The rule that tests against the reference alone is judged on the same scores.
Right is the smallest resolution that loses less than the margin against every larger one. With --quick only this
part runs, in about 5 minutes.

The other parts have 5,000 repetitions per scenario:

- the 95 % intervals of an AUC and of a difference cover the truth in 93 to 97 %;
- a resolution that loses exactly the margin is called not inferior in at most 5 % (+ two Monte Carlo standard errors),
  and the step-down names a resolution that is too small at most as often;
- intervals that ignore that images share patients, or that networks differ by seed, fail.

Two alternatives are estimates for comparison: the variance without the interaction of seed and patients (Obuchowski &
Rockette), and a t test on the AUC scale in place of the logit scale. The known limits are printed too. They have no
goals.

Run: python benchmarks/validity/coverage.py [--quick] (an hour on one core; --quick 5 minutes).
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from acuity.objectives.statistics.delong import covariance, delong_components
from acuity.objectives.statistics.difference import AucPair, difference_interval, difference_standard_error, t_statistic
from acuity.objectives.statistics.estimates import (
    ResolutionEstimates,
    estimate_auc,
    estimate_difference,
    estimate_resolutions,
    make_auc_pair,
)
from acuity.objectives.statistics.noninferiority import check_noninferiority, find_smallest_noninferior
from acuity.objectives.statistics.power import MIN_POSITIVE_PATIENTS

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

Floats = NDArray[np.float64]
REPETITIONS = 5000
LEVEL = 0.05
MARGIN = 0.02
VERDICT_REPETITIONS = {40: 2000, 157: 2000, 716: 1000}
"""Repetitions of each cell by its expected number of positive test patients."""
QUICK_REPETITIONS = {40: 400, 157: 300, 716: 100}


@dataclass(frozen=True)
class Scenario:
    """Test patients and networks whose AUCs are known."""

    name: str
    patients: int
    aucs: Mapping[int, float]
    """True AUC of each resolution in px; the largest resolution is the reference."""
    seeds: int
    skill_sd: float
    """Standard deviation between seeds of the separation of positive and negative images, in score SDs."""
    seed_share: float = 0.15
    """Share of the score variance that is specific to one network. At 0.15, scores of two seeds correlate by 0.85."""
    resolution_share: float = 0.15
    images_a_patient: float = 3.6
    correlation: float = 0.5
    """Correlation of two images of one patient, within every share of the variance."""
    prevalence: float = 0.2
    """Share of patients with the finding. Each of their images shows it with probability 0.6."""


SCENARIOS = (
    Scenario("100 positive patients", patients=600, aucs={64: 0.78, 128: 0.80}, seeds=5, skill_sd=0.03),
    Scenario("34 positive patients", patients=200, aucs={64: 0.78, 128: 0.80}, seeds=5, skill_sd=0.03),
    Scenario("34, high AUC", patients=200, aucs={64: 0.93, 128: 0.95}, seeds=5, skill_sd=0.03),
    Scenario("100, AUC near 1", patients=600, aucs={64: 0.96, 128: 0.98}, seeds=5, skill_sd=0.03),
    Scenario("100, 3 seeds", patients=600, aucs={64: 0.78, 128: 0.80}, seeds=3, skill_sd=0.03),
    Scenario("100, weak networks", patients=600, aucs={64: 0.63, 128: 0.65}, seeds=3, skill_sd=0.06),
    Scenario("250, seeds of unlike skill", patients=1500, aucs={64: 0.78, 128: 0.80}, seeds=3, skill_sd=0.12),
)
# Known limits. The interaction of seed and patients is counted twice: where nothing else separates two resolutions, the
# interval of their difference is too wide. The last one has few patients and an AUC near 1.
LIMITS = (
    Scenario(
        "limit: networks alike",
        patients=600,
        aucs={64: 0.78, 128: 0.80},
        seeds=3,
        skill_sd=0.03,
        seed_share=0.05,
        resolution_share=0.02,
    ),
    Scenario(
        "limit: seeds that disagree",
        patients=600,
        aucs={64: 0.78, 128: 0.80},
        seeds=3,
        skill_sd=0.03,
        seed_share=0.28,
        resolution_share=0.02,
    ),
    Scenario("limit: 34, AUC near 1", patients=200, aucs={64: 0.96, 128: 0.98}, seeds=5, skill_sd=0.03),
)
_RESOLUTIONS = (32, 64, 96, 128)
# AUCs at _RESOLUTIONS. In the first three a resolution loses exactly the margin, where a test errs most often.
SHAPES = {
    "boundary at top": (0.78, 0.78, 0.78, 0.80),
    "step": (0.78, 0.78, 0.80, 0.80),
    "middle best": (0.78, 0.78, 0.80, 0.78),
    "gradual": (0.76, 0.775, 0.79, 0.80),
    "flat": (0.80, 0.80, 0.80, 0.80),
    "inverted": (0.82, 0.81, 0.80, 0.79),
    "late gain": (0.74, 0.74, 0.75, 0.80),
}
STEP_DOWN = Scenario("step-down", patients=600, aucs={32: 0.70, 64: 0.78, 96: 0.795, 128: 0.80}, seeds=5, skill_sd=0.03)


def draw(
    scenario: Scenario, generator: np.random.Generator
) -> tuple[NDArray[np.int64], dict[int, Floats], NDArray[np.int64]]:
    """One test part: targets [N], scores of each resolution [S, N], patients [N]."""
    images = np.minimum(generator.geometric(1 / scenario.images_a_patient, scenario.patients), 20)
    patients = np.repeat(np.arange(scenario.patients), images)
    possible = generator.random(scenario.patients) < scenario.prevalence
    targets = (possible[patients] & (generator.random(patients.size) < 0.6)).astype(np.int64)

    def share(variance: float, *networks: int) -> Floats:
        of_patients = generator.standard_normal((*networks, scenario.patients))[..., patients]
        of_images = generator.standard_normal((*networks, patients.size))
        within = math.sqrt(scenario.correlation) * of_patients + math.sqrt(1 - scenario.correlation) * of_images
        return math.sqrt(variance) * within

    common = share(1 - scenario.resolution_share - scenario.seed_share, 1)
    scores: dict[int, Floats] = {}
    for resolution, auc in scenario.aucs.items():
        # The mean AUC over seeds of normally distributed skill is exactly the scenario's AUC.
        mean = norm.ppf(auc) * math.sqrt(2 + scenario.skill_sd**2)
        skill = mean + scenario.skill_sd * generator.standard_normal((scenario.seeds, 1))
        own = share(scenario.resolution_share, 1) + share(scenario.seed_share, scenario.seeds)
        scores[resolution] = common + own + skill * targets
    return targets, scores, patients


def simulate(scenario: Scenario, *, repetitions: int, seed: int = 0) -> dict[str, float]:
    """Share of repetitions in which each interval covers the truth and each test errs at the margin."""
    generator = np.random.default_rng(seed)
    resolution, reference = min(scenario.aucs), max(scenario.aucs)
    truth = scenario.aucs[reference]
    margin = truth - scenario.aucs[resolution]
    counts: defaultdict[str, float] = defaultdict(float)
    for _ in range(repetitions):
        targets, scores, patients = draw(scenario, generator)
        estimates = estimate_resolutions(targets, scores, patients)
        auc = estimate_auc(estimates, reference)
        difference = estimate_difference(estimates, resolution, reference=reference)
        shown = check_noninferiority(estimates, resolution, reference=reference, margin=margin).outcome == "shown"
        pair = make_auc_pair(estimates, resolution, reference=reference)
        patient_se = math.sqrt(pair.patient_variances[1])
        image_se = _se_of_independent_images(targets, scores[reference])
        narrower = _without_excess(pair, targets, [scores[resolution], scores[reference]], patients)
        counts["positive_patients"] += estimates.positive_patients
        counts["auc_covered"] += auc.auc_low <= truth <= auc.auc_high
        counts["difference_covered"] += difference.difference_low <= -margin <= difference.difference_high
        counts["wrongly_shown"] += shown
        counts["ignoring_patients"] += abs(auc.auc - truth) <= norm.ppf(0.975) * math.hypot(
            image_se, math.sqrt(pair.seed_variances[1])
        )
        counts["ignoring_seeds"] += abs(auc.auc - truth) <= norm.ppf(0.975) * patient_se
        counts["plain_t_wrongly_shown"] += _plain_t_shows(pair, margin=margin)
        counts["obuchowski_rockette_covered"] += _covers(narrower, value=-margin)
        counts["obuchowski_rockette_wrongly_shown"] += _shows(narrower, margin=margin)
    return {name: float(count / repetitions) for name, count in counts.items()}


def make_verdict_scenario(shape: str, *, positives: int, seeds: int) -> Scenario:
    """Validation and test patients, equally many. `positives`: the expected number of positive test patients.

    With fewer images of each patient than in the other scenarios, large cells take less time.
    """
    images = 2.0
    # A patient with the finding has k images (geometric with this mean), of which none shows it with 0.4^k.
    shown = 1 - (0.4 / images) / (1 - 0.4 * (1 - 1 / images))
    return Scenario(
        shape,
        patients=2 * round(positives / (0.2 * shown)),
        aucs=dict(zip(_RESOLUTIONS, SHAPES[shape], strict=True)),
        seeds=seeds,
        skill_sd=0.03,
        images_a_patient=images,
    )


def simulate_verdicts(scenario: Scenario, *, repetitions: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Share of repetitions in which each rule names a too small and the right resolution, and any at all.

    "every_larger": the rule of find_smallest_noninferior. "reference_alone": its peer. "patients": their mean numbers.
    """
    generator = np.random.default_rng(seed)
    right = min(resolution for resolution in scenario.aucs if _loss(scenario, resolution) < MARGIN - 1e-9)
    counts: dict[str, defaultdict[str, float]] = {
        rule: defaultdict(float, too_small=0, right=0, named=0) for rule in ("every_larger", "reference_alone")
    }
    positives = 0.0
    for _ in range(repetitions):
        targets, scores, patients = draw(scenario, generator)
        is_test = patients >= scenario.patients // 2
        validation_aucs = {
            resolution: delong_components(targets[~is_test], rows[:, ~is_test], patients[~is_test]).aucs.mean()
            for resolution, rows in scores.items()
        }
        reference = max(validation_aucs, key=lambda resolution: (validation_aucs[resolution], -resolution))
        estimates = estimate_resolutions(
            targets[is_test],
            {resolution: rows[:, is_test] for resolution, rows in scores.items()},
            patients[is_test],
        )
        positives += estimates.positive_patients
        named_by_rule = {
            "every_larger": find_smallest_noninferior(estimates, reference=reference, margin=MARGIN).resolution,
            "reference_alone": _smallest_against_reference(estimates, reference=reference),
        }
        for rule, named in named_by_rule.items():
            if named is not None:
                counts[rule]["named"] += 1
                counts[rule]["right"] += named == right
                counts[rule]["too_small"] += _loss(scenario, named) >= MARGIN - 1e-9
    shares = {rule: {name: count / repetitions for name, count in found.items()} for rule, found in counts.items()}
    return shares | {"patients": {"positive": positives / repetitions}}


def _loss(scenario: Scenario, resolution: int) -> float:
    """Largest true AUC of this and all larger resolutions, minus the true AUC of the resolution."""
    return max(auc for other, auc in scenario.aucs.items() if other >= resolution) - scenario.aucs[resolution]


def _smallest_against_reference(estimates: ResolutionEstimates, *, reference: int) -> int | None:
    """Step-down whose tests compare smaller resolutions with the reference alone. Larger ones are not compared."""
    if estimates.positive_patients < MIN_POSITIVE_PATIENTS:
        return None
    named = reference
    for resolution in reversed([each for each in estimates.resolutions if each < reference]):
        test = check_noninferiority(estimates, resolution, reference=reference, margin=MARGIN)
        if test.outcome == "shown":
            named = resolution
            continue
        return None if named == reference and test.outcome == "undecided" else named
    return named


def simulate_step_down(
    scenario: Scenario, *, margin: float, repetitions: int, seed: int = 0
) -> tuple[float, dict[str, int]]:
    """Share of repetitions that name a resolution which loses the margin or more, and counts of each answer."""
    generator = np.random.default_rng(seed)
    reference = max(scenario.aucs)
    named: defaultdict[str, int] = defaultdict(int)
    wrong = 0
    for _ in range(repetitions):
        estimates = estimate_resolutions(*draw(scenario, generator))
        answer = find_smallest_noninferior(estimates, reference=reference, margin=margin)
        named[str(answer.resolution or answer.verdict)] += 1
        loss = scenario.aucs[reference] - scenario.aucs.get(answer.resolution or reference, 0.0)
        wrong += loss >= margin - 1e-9
    return wrong / repetitions, dict(named)


def _se_of_independent_images(targets: NDArray[np.int64], scores: Floats) -> float:
    components = delong_components(targets, scores, np.arange(targets.size))
    return math.sqrt(float(covariance(components).mean()))


def _without_excess(
    pair: AucPair, targets: NDArray[np.int64], scores: list[Floats], patients: NDArray[np.int64]
) -> AucPair:
    """The pair with the patients' variance from pairs of different seeds alone: its limit for many seeds."""
    variances = []
    for rows in scores:
        matrix = covariance(delong_components(targets, rows, patients))
        seeds = len(rows)
        variances.append(max(float((matrix.sum() - np.trace(matrix)) / (seeds * (seeds - 1))), 0.0))
    return replace(pair, patient_variances=(variances[0], variances[1]))


def _covers(pair: AucPair, *, value: float) -> bool:
    low, high = difference_interval(pair, level=0.95)
    return low <= value <= high


def _shows(pair: AucPair, *, margin: float) -> bool:
    return bool(student.sf(*t_statistic(pair, value=-margin)) <= LEVEL)


def _plain_t_shows(pair: AucPair, *, margin: float) -> bool:
    se, degrees = difference_standard_error(pair)
    return bool((pair.difference + margin) / se > student.ppf(1 - LEVEL, degrees))


def _monte_carlo_se(share: float, repetitions: int) -> float:
    return math.sqrt(share * (1 - share) / repetitions)


def _goal(name: str, value: float, *, goal: str, met: bool) -> dict[str, Any]:
    half = 1.96 * _monte_carlo_se(value, REPETITIONS)
    return make_goal(name, value, goal, met=met, low=value - half, high=value + half, digits=4)


def _verdict_goals(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cell with the largest excess over its limit, and the mean share of right verdicts of each rule."""

    def limit(cell: dict[str, Any]) -> float:
        return LEVEL + 2 * _monte_carlo_se(LEVEL, cell["repetitions"])

    goals = []
    for rule, expected in (("every_larger", True), ("reference_alone", False)):
        worst = max(cells, key=lambda cell: cell[rule]["too_small"] - limit(cell))
        value, most = worst[rule]["too_small"], limit(worst)
        half = 1.96 * _monte_carlo_se(value, worst["repetitions"])
        name = f"too_small_{rule}_highest ({worst['shape']}, {worst['positives']} positives, {worst['seeds']} seeds)"
        goal, met = (f"<= {most:.4f}", value <= most) if expected else (f"> {most:.4f}: shown to fail", value > most)
        goals.append(make_goal(name, value, goal, met=met, low=max(value - half, 0), high=value + half, digits=4))
    return goals


def run_verdicts(repetitions: Mapping[int, int]) -> list[dict[str, Any]]:
    """Simulate each shape, number of positive patients and number of seeds; print a row for each."""
    columns = "shape | positive patients | seeds | n"
    rules = "too small | right | named"
    print(f"| {columns} | {rules} | reference alone: {rules} |")
    print("|" + "---|" * 10)
    cells = []
    for shape in SHAPES:
        for positives, count in repetitions.items():
            for seeds in (3, 5):
                found = simulate_verdicts(
                    make_verdict_scenario(shape, positives=positives, seeds=seeds), repetitions=count
                )
                cells.append({"shape": shape, "positives": positives, "seeds": seeds, "repetitions": count} | found)
                shares = [
                    f"{found[rule][name]:.3f}"
                    for rule in ("every_larger", "reference_alone")
                    for name in ("too_small", "right", "named")
                ]
                print(f"| {shape} | {positives} | {seeds} | {count} | {' | '.join(shares)} |", flush=True)
    return cells


def _goals(rows: dict[str, dict[str, float]], too_small: float) -> list[dict[str, Any]]:
    error_limit = LEVEL + 2 * _monte_carlo_se(LEVEL, REPETITIONS)
    goals = []
    for name in ("auc_covered", "difference_covered"):
        shares = [row[name] for row in rows.values()]
        for which, value in (("lowest", min(shares)), ("highest", max(shares))):
            goals.append(_goal(f"{name}_{which}", value, goal="0.93 to 0.97", met=0.93 <= value <= 0.97))
    worst = max(row["wrongly_shown"] for row in rows.values())
    limit = f"<= {error_limit:.4f}"
    goals.append(_goal("wrongly_shown_highest", worst, goal=limit, met=worst <= error_limit))
    goals.append(_goal("step_down_names_too_small", too_small, goal=limit, met=too_small <= error_limit))
    for name in ("ignoring_patients", "ignoring_seeds"):
        value = min(row[name] for row in rows.values())
        goals.append(_goal(f"{name}_lowest", value, goal="< 0.93: shown to fail", met=value < 0.93))
    return goals


def main() -> None:
    """Run every scenario, print the tables and the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="simulate the verdicts alone, with fewer repetitions")
    quick = parser.parse_args().quick
    versions = {"python": sys.version.split()[0], "numpy": np.__version__, "scipy": scipy.__version__}
    repetitions = QUICK_REPETITIONS if quick else VERDICT_REPETITIONS
    verdicts = run_verdicts(repetitions)
    if quick:
        goals = _verdict_goals(verdicts)
        print_result("coverage_guard", n=repetitions, goals=goals, versions=versions, verdicts=verdicts)
        return
    print()
    columns = {
        "positive_patients": "positive patients",
        "auc_covered": "AUC covered",
        "difference_covered": "difference covered",
        "wrongly_shown": "wrongly shown",
        "ignoring_patients": "AUC, ignoring patients",
        "ignoring_seeds": "AUC, ignoring seeds",
        "plain_t_wrongly_shown": "plain t: wrongly shown",
        "obuchowski_rockette_covered": "O&R: difference covered",
        "obuchowski_rockette_wrongly_shown": "O&R: wrongly shown",
    }
    print("| scenario | " + " | ".join(columns.values()) + " |")
    print("|" + "---|" * (len(columns) + 1))
    rows: dict[str, dict[str, float]] = {}
    for scenario in (*SCENARIOS, *LIMITS):
        row = rows[scenario.name] = simulate(scenario, repetitions=REPETITIONS)
        cells = [f"{row[name]:.1f}" if name == "positive_patients" else f"{row[name]:.3f}" for name in columns]
        print(f"| {scenario.name} | " + " | ".join(cells) + " |", flush=True)
    too_small, named = simulate_step_down(STEP_DOWN, margin=0.02, repetitions=REPETITIONS)
    print(f"\nstep-down, true AUCs {dict(STEP_DOWN.aucs)}, margin 0.02: named {named}, too small in {too_small:.3f}")
    print_result(
        "coverage",
        n={"verdicts": repetitions, "others": REPETITIONS},
        goals=_verdict_goals(verdicts)
        + _goals({scenario.name: rows[scenario.name] for scenario in SCENARIOS}, too_small),
        versions=versions,
        verdicts=verdicts,
        scenarios=rows,
        step_down=named,
    )


if __name__ == "__main__":
    main()
