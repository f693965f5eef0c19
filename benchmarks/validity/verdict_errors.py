"""Claim: a too small resolution is named in at most 5 % if the start of the tests does not depend on tested networks.

AUCs are drawn from their normal limit. Its covariance over patients comes from binormal scores with several images per
patient (coverage.draw) and is scaled to the number of patients. A network's AUC has its resolution's true AUC, its
skill, a part shared by all networks on the same patients, and an interaction of network and patients. Networks of one
fold share a part of their skill. The estimated covariance has the Wishart distribution with the degrees of freedom that
the estimator of the standard error reports. `coverage.py` simulates the scores themselves, for the held-out design.

Of all patients 20 % are test patients and 16 % validation patients (Acuity's split). The held-out design tests on the
test patients. The cross-fitted design tests on the 84 % outside validation; its variance over seeds is estimated on
validation patients. A named resolution is too small if a larger one is better by the margin or more.

A design with `min_folds` trains further folds as `acuity confirm` does: until the variance over networks on validation
patients and the number of patients give every open test its power. All designs leave out the resolutions below one that
clearly loses on validation patients.

Three starts of the tests are judged on the same AUCs: the resolution with the highest AUC on validation patients in the
search, whose networks have other seeds; the largest resolution; and the highest mean AUC of the confirmed networks on
validation patients. These networks are tested, too, so that chance favours the last start. The rule before ("reference
alone", held-out) tests against that start alone. Cost is in trainings at the largest resolution on the held-out
training patients, where a training takes time in proportion to pixels and patients. It is a mean over repetitions.

Run: python benchmarks/validity/verdict_errors.py [--repetitions 1000] [--out FILE] (10 minutes on one free core). Cells
in FILE are not simulated again.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from coverage import MARGIN, SHAPES, Scenario, draw
from numpy.typing import NDArray
from scipy.special import stdtr

from acuity.objectives.statistics.delong import combine, covariance, degrees_of_freedom, delong_components
from acuity.objectives.statistics.difference import AucPair, t_statistic
from acuity.objectives.statistics.enough_folds import ValidationAucs, clearly_loses, have_power

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

Floats = NDArray[np.float64]
LEVEL = 0.05
POSITIVES = (2500, 716, 157, 40)
"""Expected numbers of positive patients in the test part."""
SEED_SDS = (0.020, 0.012, 0.008, 0.004)
"""SD of one AUC over seeds. Measured on NIH's radiographs: .020. Implied by Sabottke & Spieler: .008."""
RESOLUTIONS = (32, 64, 96, 128)
_KEYS = ("design", "shape", "positives", "seed_sd", "repetitions")
_FOLD_SHARE = 0.2
"""Share of the variance of skill that networks of one fold and resolution have in common."""
_TEST, _VALIDATION = 0.20, 0.16
_MOST_WISHART_DEGREES = 400
_MODEL_POSITIVES = 157


@dataclass(frozen=True)
class Design:
    """A confirmation's networks at each resolution."""

    name: str
    folds: int
    """1: held-out."""
    networks_per_fold: int
    min_folds: int | None = None
    """Folds that are trained at least. By default all of them."""

    @property
    def patients(self) -> float:
        """Number of patients of all folds in parts of the held-out test patients."""
        return 1.0 if self.folds == 1 else (1 - _VALIDATION) / _TEST

    def cost(self, *, folds: int, resolutions: Sequence[int] = RESOLUTIONS, nominees: int = 1) -> float:
        """Trainings at the largest resolution on the held-out training patients."""
        pixels = sum(resolution**2 for resolution in resolutions) / max(RESOLUTIONS) ** 2
        held_out = 1 - _TEST - _VALIDATION
        trained_on = held_out if self.folds == 1 else (1 - _VALIDATION) * (1 - 1 / self.folds)
        return pixels * (folds * self.networks_per_fold + nominees - 1) * trained_on / held_out


DESIGNS = (
    Design("held-out, 5 seeds", 1, 5),
    Design("held-out, 3 seeds", 1, 3),
    Design("cross-fitted, 3 folds x 1", 3, 1),
    Design("cross-fitted, 4 folds x 1", 4, 1),
    Design("cross-fitted, 2 to 4 folds x 1", 4, 1, 2),
    Design("cross-fitted, 3 to 4 folds x 1", 4, 1, 3),
    Design("cross-fitted, 5 folds x 1", 5, 1),
    Design("cross-fitted, 3 to 5 folds x 1", 5, 1, 3),
    Design("cross-fitted, 3 folds x 2", 3, 2),
    Design("cross-fitted, 3 folds x 3", 3, 3),
)
BEFORE = DESIGNS[0]
RULES = ("start from search", "start from the largest", "start from the same networks", "reference alone")
"""Tests against every larger resolution with three starts, and the rule before."""
_NOMINEES_BEFORE = 3


@dataclass(frozen=True, eq=False)
class Limit:
    """Covariance of AUCs over patients for a test part with _MODEL_POSITIVES positive patients."""

    shared: Floats
    """[R, R]: of networks that differ in all seeds."""
    interaction: Floats
    """[R]: additional variance of one network."""
    degrees: float
    """Degrees of freedom of the variance of a difference."""
    positive_patients: float
    negative_patients: float


@cache
def normal_limit(shape: str, draws: int = 20) -> Limit:
    """Mean covariances of binormal draws of a shape."""
    seeds = 3
    scenario = Scenario(
        shape,
        patients=round(_MODEL_POSITIVES / 0.15),
        aucs=dict(zip(RESOLUTIONS, SHAPES[shape], strict=True)),
        seeds=seeds,
        skill_sd=0.0,
        images_a_patient=2.0,
    )
    generator = np.random.default_rng(0)
    count = len(RESOLUTIONS)
    matrices, degrees, patients = [], [], []
    for _ in range(draws):
        targets, scores, codes = draw(scenario, generator)
        components = delong_components(targets, np.concatenate([scores[each] for each in RESOLUTIONS]), codes)
        matrices.append(covariance(components).reshape(count, seeds, count, seeds))
        averaged = combine(components, np.kron(np.eye(count), np.full((1, seeds), 1 / seeds)))
        difference = combine(averaged, [[1, *[0] * (count - 2), -1]])
        degrees.append(float(degrees_of_freedom(difference)[0]))
        patients.append((components.positive_patients, components.negative_patients))
    mean = np.mean(matrices, axis=0)
    single = np.array([np.trace(mean[each, :, each, :]) / seeds for each in range(count)])
    between = [(mean[each, :, each, :].sum() - seeds * single[each]) / (seeds * (seeds - 1)) for each in range(count)]
    shared = mean.mean(axis=(1, 3))
    np.fill_diagonal(shared, between)
    positive, negative = np.mean(patients, axis=0)
    return Limit(shared, single - np.array(between), float(np.mean(degrees)), float(positive), float(negative))


def simulate(
    design: Design, shape: str, *, positives: int, seed_sd: float, repetitions: int
) -> dict[str, dict[str, float]]:
    """Share of repetitions in which each rule names a too small and the right resolution, and any at all.

    Under "trainings" are the mean numbers of trained folds and the mean cost.
    """
    limit, true_aucs = normal_limit(shape), np.array(SHAPES[shape])
    generator = np.random.default_rng(1)
    size = positives / limit.positive_patients
    size_of_fold, validation = size * design.patients / design.folds, size * _VALIDATION / _TEST
    count = len(RESOLUTIONS)
    rules = [*RULES[:-1], *(RULES[-1:] if design == BEFORE else ())]
    rows = {rule: dict.fromkeys(("too_small", "right", "named"), 0.0) for rule in rules}
    root = np.linalg.cholesky(limit.shared)
    losses = np.array([true_aucs[each:].max() - true_aucs[each] for each in range(count)])
    right = int(np.flatnonzero(losses < MARGIN - 1e-9)[0])
    trainings = {"folds": 0.0, "cost": 0.0}
    for _ in range(repetitions):
        skill = _skill(generator, design, seed_sd)
        level = true_aucs + root @ generator.standard_normal(count) / math.sqrt(validation)
        validation_aucs = level[:, None] + skill + _interactions(generator, limit, skill.shape[1], size=validation)
        in_search = level + _search_noise(generator, limit, seed_sd, size=validation)
        folds, smallest = _need(
            design, limit, validation_aucs, in_search, size_of_fold=size_of_fold, validation=validation
        )
        networks, tested = folds * design.networks_per_fold, folds * size_of_fold
        skill, validation_aucs = skill[:, :networks], validation_aucs[:, :networks]
        trainings["folds"] += folds / repetitions
        trainings["cost"] += design.cost(folds=folds, resolutions=RESOLUTIONS[smallest:]) / repetitions
        # A fold's patients are few, so that the interaction does not average out over folds as over networks.
        test_noise = _interactions(generator, limit, networks, size=size_of_fold)
        aucs = true_aucs + root @ generator.standard_normal(count) / math.sqrt(tested) + (skill + test_noise).mean(1)
        aucs = np.minimum(aucs, 1 - 1e-6)
        over_seeds = skill + test_noise if design.folds == 1 else validation_aucs
        degrees = limit.degrees * tested
        matrix = limit.shared / tested + np.diag(limit.interaction / (tested * design.networks_per_fold))
        pairs = _Pairs(
            aucs,
            _wishart(generator, matrix, degrees),
            degrees,
            over_seeds.var(axis=1, ddof=1) / networks,
            networks,
            (round(limit.positive_patients * tested), round(limit.negative_patients * tested)),
        )
        same = int(validation_aucs.mean(1).argmax())
        starts = dict(zip(RULES, (int(in_search.argmax()), count - 1, same, same), strict=True))
        for rule in rules:
            judge = _smallest_against_reference if rule == RULES[-1] else _smallest
            named = judge(pairs, max(starts[rule], smallest), smallest)
            if named is not None:
                rows[rule]["named"] += 1 / repetitions
                rows[rule]["right"] += (named == right) / repetitions
                rows[rule]["too_small"] += (losses[named] >= MARGIN - 1e-9) / repetitions
    return rows | {"trainings": trainings}


def _need(
    design: Design, limit: Limit, validation_aucs: Floats, in_search: Floats, *, size_of_fold: float, validation: float
) -> tuple[int, int]:
    """The number of trained folds and the position of the smallest needed resolution, as in `find_need`."""
    patient_variances = (np.diag(limit.shared) + limit.interaction) / validation
    smallest = 0
    for folds in range(design.min_folds or design.folds, design.folds + 1):
        networks = folds * design.networks_per_fold
        aucs = [
            ValidationAucs(row, float(variance))
            for row, variance in zip(validation_aucs[:, :networks], patient_variances, strict=True)
        ]
        smallest = _smallest_needed(aucs, in_search, smallest)
        tested = folds * size_of_fold
        patients = round(limit.positive_patients * tested), round(limit.negative_patients * tested)
        if folds < design.folds and have_power(aucs[smallest:], patients=patients, margin=MARGIN):
            return folds, smallest
    return design.folds, smallest


def _smallest_needed(aucs: Sequence[ValidationAucs], in_search: Floats, smallest: int) -> int:
    """Position of the largest resolution that clearly loses, unless a smaller one was the best of the search."""
    for position in range(len(aucs) - 2, smallest, -1):
        loses = any(clearly_loses(aucs[position], larger, margin=MARGIN) for larger in aucs[position + 1 :])
        if loses and in_search[smallest:position].max() < in_search[position:].max():
            return position
    return smallest


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Estimated AUCs of one repetition."""

    aucs: Floats
    matrix: Floats
    degrees: float
    seed_variances: Floats
    seeds: int
    patients: tuple[int, int]
    known: dict[tuple[int, int], float] = field(default_factory=dict)

    def p_value(self, small: int, large: int) -> float:
        """p value of the test that the smaller resolution loses less than the margin."""
        if (small, large) not in self.known:
            self.known[small, large] = self._p_value(small, large)
        return self.known[small, large]

    def _p_value(self, small: int, large: int) -> float:
        pair = AucPair(
            aucs=(float(self.aucs[small]), float(self.aucs[large])),
            patient_variances=(float(self.matrix[small, small]), float(self.matrix[large, large])),
            patient_covariance=float(self.matrix[small, large]),
            patient_degrees=self.degrees,
            seed_variances=(float(self.seed_variances[small]), float(self.seed_variances[large])),
            seeds=(self.seeds, self.seeds),
            positive_patients=self.patients[0],
            negative_patients=self.patients[1],
        )
        statistic, degrees = t_statistic(pair, value=-MARGIN)
        return float(stdtr(degrees, -statistic))


def _smallest(pairs: _Pairs, reference: int, smallest: int) -> int | None:
    """The rule of `find_smallest_noninferior`, from p values alone. smallest: the position that is confirmed last."""
    last = len(pairs.aucs) - 1
    named, failed = _step_down(pairs, range(reference, smallest - 1, -1))
    if named is None and failed == "worse" and reference < last:
        named, failed_above = _step_down(pairs, range(last - 1, reference, -1))
        failed = failed_above or failed
    if named is not None:
        return named
    return None if failed == "undecided" else last


def _step_down(pairs: _Pairs, positions: Sequence[int]) -> tuple[int | None, str | None]:
    """The smallest resolution that is shown by tests, and the outcome of the first that is not shown."""
    named = None
    for position in positions:
        p_values = [pairs.p_value(position, each) for each in range(position + 1, len(pairs.aucs))]
        if any(p_value > LEVEL for p_value in p_values):
            worse = any(p_value >= 1 - LEVEL / len(p_values) for p_value in p_values)
            return named, "worse" if worse else "undecided"
        if p_values:
            named = position
    return named, None


def _smallest_against_reference(pairs: _Pairs, reference: int, smallest: int) -> int | None:
    """The rule before: smaller resolutions against the reference alone."""
    named = reference
    for position in range(reference - 1, smallest - 1, -1):
        p_value = pairs.p_value(position, reference)
        if p_value <= LEVEL:
            named = position
            continue
        return None if named == reference and p_value < 1 - LEVEL else named
    return named


def _skill(generator: np.random.Generator, design: Design, seed_sd: float) -> Floats:
    """[R, networks]. Networks of a fold share a part."""
    share = _FOLD_SHARE if design.folds > 1 else 0.0
    shape = (len(RESOLUTIONS), design.folds, design.networks_per_fold)
    of_folds = math.sqrt(share) * generator.standard_normal((*shape[:2], 1))
    own = math.sqrt(1 - share) * generator.standard_normal(shape)
    skill: Floats = seed_sd * (of_folds + own).reshape(shape[0], -1)
    return skill


def _interactions(generator: np.random.Generator, limit: Limit, networks: int, *, size: float) -> Floats:
    noise: Floats = np.sqrt(limit.interaction / size)[:, None] * generator.standard_normal((len(RESOLUTIONS), networks))
    return noise


def _search_noise(generator: np.random.Generator, limit: Limit, seed_sd: float, *, size: float) -> Floats:
    """[R]: the part of the search's AUCs that is of one network with a seed of the search."""
    noise: Floats = seed_sd * generator.standard_normal(len(RESOLUTIONS))
    return noise + _interactions(generator, limit, 1, size=size)[:, 0]


def _wishart(generator: np.random.Generator, matrix: Floats, degrees: float) -> Floats:
    """An estimate of the matrix with these degrees of freedom. Many degrees are exact enough without noise."""
    if degrees > _MOST_WISHART_DEGREES:
        return matrix
    drawn = generator.standard_normal((max(round(degrees), 2), len(matrix)))
    rows = drawn @ np.linalg.cholesky(matrix).T
    estimate: Floats = rows.T @ rows / len(rows)
    return estimate


def _goals(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    goals = []
    for rule in RULES:
        for design in DESIGNS:
            of_design = [cell for cell in cells if cell["design"] == design.name]
            if rule not in of_design[0]:
                continue
            expected = rule != "reference alone"
            worst = max(of_design, key=lambda cell: cell[rule]["too_small"])
            value, n = worst[rule]["too_small"], worst["repetitions"]
            most = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / n)
            half = 1.96 * math.sqrt(value * (1 - value) / n)
            where = f"{worst['shape']}, {worst['positives']} positives, seed SD {worst['seed_sd']:g}"
            goals.append(
                make_goal(
                    f"too_small_highest, {rule}: {design.name} ({where})",
                    value,
                    f"<= {most:.4f}" if expected else f"> {most:.4f}: shown to fail",
                    met=value <= most if expected else value > most,
                    low=max(value - half, 0),
                    high=value + half,
                    digits=4,
                )
            )
    return goals


def main() -> None:
    """Simulate the missing cells, print the table and the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="file of finished cells, one JSON object a line")
    asked = parser.parse_args()
    done = {}
    if asked.out and asked.out.exists():
        for line in asked.out.read_text().splitlines():
            cell = json.loads(line)
            done[tuple(cell[key] for key in _KEYS)] = cell
    cells = []
    for seed_sd, positives, shape, design in itertools.product(SEED_SDS, POSITIVES, SHAPES, DESIGNS):
        key = (design.name, shape, positives, seed_sd, asked.repetitions)
        if key not in done:
            found = simulate(design, shape, positives=positives, seed_sd=seed_sd, repetitions=asked.repetitions)
            done[key] = dict(zip(_KEYS, key, strict=True)) | {
                name: {key: round(value, 4) for key, value in values.items()} for name, values in found.items()
            }
            if asked.out:
                with asked.out.open("a") as file:
                    file.write(json.dumps(done[key]) + "\n")
        cell = done[key]
        cells.append(cell)
        shares = [f"{share:.3f}" for name in sorted(cell.keys() - set(_KEYS)) for share in cell[name].values()]
        print(f"| {shape} | {positives} | {seed_sd:g} | {design.name} | {' | '.join(shares)} |", flush=True)
    print_result(
        "verdict_errors",
        n=asked.repetitions,
        goals=_goals(cells),
        costs={"before": round(BEFORE.cost(folds=1, nominees=_NOMINEES_BEFORE), 2)}
        | {design.name: round(design.cost(folds=design.folds), 2) for design in DESIGNS},
        cells=cells,
    )


if __name__ == "__main__":
    main()
