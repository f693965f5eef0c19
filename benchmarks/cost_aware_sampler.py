"""A candidate for the search: asks what a trial would tell for what it costs, over all resolutions at once."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState
from scipy.special import logit
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from study.nominate import NEAR_THE_TOP

Floats = NDArray[np.float64]

_CANDIDATES = 400
_LARGEST_FIT = 300
_STARTUP = 8


class CostAwareSampler(BaseSampler):
    """Most expected gain a second of training, by one Gaussian process over the whole space.

    The gain is what confirmation would see more: the best AUC of each resolution, as far as it is within 0.05 of the
    best of all. Running trials count as if they ended where the process expects them to.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._space = IntersectionSearchSpace(include_pruned=True)
        self._kernel: Any = None
        self._fitted = 0

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self._space.calculate(study)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
        trials = [
            other for other in trials if other.number != trial.number and search_space.keys() <= other.params.keys()
        ]
        told = [other for other in trials if _value(other) is not None]
        if "resolution" not in search_space or len(told) < _STARTUP:
            return {}
        running = [other for other in trials if other.state is TrialState.RUNNING]
        candidates = self._candidates(search_space, told)
        process = self._fit(_features([other.params for other in told], search_space), _values(told))
        features = _features(candidates, search_space)
        seen = _features([other.params for other in told], search_space)
        means = process.predict(seen)
        if running:
            pending = _features([other.params for other in running], search_space)
            process = _condition(
                process, np.vstack([seen, pending]), np.append(_values(told), process.predict(pending))
            )
        mean, deviation = process.predict(features, return_std=True)
        deviation = np.sqrt(np.maximum(deviation**2 - _noise(process), 1e-8))
        floor = self._floors(told, means, candidates)
        z = (mean - floor) / deviation
        gain = np.log(np.maximum(deviation * (z * norm.cdf(z) + norm.pdf(z)), 1e-30))
        return candidates[int(np.argmax(gain - np.log(_costs(told, candidates))))]

    def _floors(self, told: Sequence[FrozenTrial], means: Floats, candidates: Sequence[dict[str, Any]]) -> Floats:
        """What a candidate must exceed: its resolution's best so far, or what is near enough to the top to matter."""
        best: dict[int, float] = {}
        for other, mean in zip(told, means, strict=True):
            if other.state is TrialState.COMPLETE:
                at = other.params["resolution"]
                best[at] = max(best.get(at, -np.inf), float(mean))
        top = max(best.values())
        area = 1 / (1 + np.exp(-top))
        near = float(logit(max(area - NEAR_THE_TOP, 0.5)))
        return np.array([max(best.get(candidate["resolution"], -np.inf), near) for candidate in candidates])

    def _candidates(self, space: dict[str, BaseDistribution], told: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
        """Random ones, and neighbours of the best ones at every resolution."""
        drawn = [{name: _draw(one, self._rng) for name, one in space.items()} for _ in range(_CANDIDATES)]
        best = sorted(told, key=lambda other: -(_value(other) or 0))[:10]
        resolutions = space["resolution"]
        assert isinstance(resolutions, CategoricalDistribution)
        for other in best:
            for resolution in resolutions.choices:
                for _ in range(4):
                    near = {name: _near(one, other.params[name], self._rng) for name, one in space.items()}
                    drawn.append(near | {"resolution": resolution})
        return drawn

    def _fit(self, features: Floats, values: Floats) -> GaussianProcessRegressor:
        if len(values) > _LARGEST_FIT:
            kept = np.sort(self._rng.permutation(len(values))[:_LARGEST_FIT])
            features, values = features[kept], values[kept]
        if self._kernel is None or len(values) > 1.2 * self._fitted:
            lengths = np.ones(features.shape[1])
            kernel = ConstantKernel(1.0, (0.05, 50)) * RBF(lengths, (0.2, 20)) + WhiteKernel(0.1, (1e-3, 2))
            with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
                process = GaussianProcessRegressor(kernel, normalize_y=True).fit(features, values)
            self._kernel, self._fitted = process.kernel_, len(values)
            return process
        return GaussianProcessRegressor(self._kernel, optimizer=None, normalize_y=True).fit(features, values)


def _condition(process: GaussianProcessRegressor, features: Floats, values: Floats) -> GaussianProcessRegressor:
    return GaussianProcessRegressor(process.kernel_, optimizer=None, normalize_y=True).fit(features, values)


def _noise(process: GaussianProcessRegressor) -> float:
    return float(process.kernel_.k2.noise_level * process._y_train_std**2)


def _value(trial: FrozenTrial) -> float | None:
    if trial.state is TrialState.COMPLETE:
        return trial.value
    if trial.state is TrialState.PRUNED and trial.intermediate_values:
        return trial.intermediate_values[max(trial.intermediate_values)]
    return None


def _values(trials: Sequence[FrozenTrial]) -> Floats:
    return logit(np.clip([_value(trial) for trial in trials], 0.3, 0.995))


def _features(parameters: Sequence[dict[str, Any]], space: dict[str, BaseDistribution]) -> Floats:
    columns = []
    for name, distribution in space.items():
        values = [one[name] for one in parameters]
        if name == "resolution":
            columns.append(2 * np.log2(np.array(values, dtype=np.float64) / 64))
        elif isinstance(distribution, CategoricalDistribution):
            columns += [[float(value == choice) for value in values] for choice in distribution.choices]
        elif isinstance(distribution, FloatDistribution) and distribution.log:
            columns.append(2 * np.log10(values))
        else:
            columns.append(np.array(values, dtype=np.float64))
    return np.column_stack(columns)


def _costs(told: Sequence[FrozenTrial], candidates: Sequence[dict[str, Any]]) -> Floats:
    """Seconds of an epoch: the mean of the same resolution and architecture, else of others scaled by pixels."""
    timed: dict[tuple[int, str], list[float]] = {}
    for other in told:
        seconds, epochs = other.user_attrs.get("seconds"), other.user_attrs.get("epochs")
        if seconds and epochs:
            timed.setdefault((other.params["resolution"], other.params["architecture"]), []).append(seconds / epochs)
    mean = {key: float(np.mean(seconds)) for key, seconds in timed.items()}

    def cost(resolution: int, architecture: str) -> float:
        if (resolution, architecture) in mean:
            return mean[resolution, architecture]
        scaled = [(seconds * (resolution / at) ** 2, of == architecture) for (at, of), seconds in mean.items()] or [
            (resolution**2, True)
        ]
        same = [seconds for seconds, is_same in scaled if is_same] or [seconds for seconds, _ in scaled]
        return float(np.mean(same))

    return np.array([cost(one["resolution"], one["architecture"]) for one in candidates])


def _draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[rng.integers(len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        return int(rng.integers(distribution.low, distribution.high + 1))
    assert isinstance(distribution, FloatDistribution)
    return float(np.exp(rng.uniform(np.log(distribution.low), np.log(distribution.high))))


def _near(distribution: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return value if rng.random() < 0.8 else _draw(distribution, rng)
    if isinstance(distribution, IntDistribution):
        return int(np.clip(value + rng.integers(-1, 2), distribution.low, distribution.high))
    assert isinstance(distribution, FloatDistribution)
    return float(np.clip(value * np.exp(rng.normal(0, 0.3)), distribution.low, distribution.high))
