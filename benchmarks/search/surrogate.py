"""A model of recorded learning curves: cost and AUCs of a training of any configuration, with noise.

For each label, Gaussian processes over (resolution, architecture, batch size, learning rate) predict the logits of the
validation AUC after each epoch and of the test AUC, by their principal components. A drawn curve is the mean plus a
residual of a recorded training of similar AUC. Residuals are scaled so that two draws differ as two seeds of one cell.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression

_COMPONENTS = 3
_SIMILAR = 30
_CELL = ["resolution", "architecture", "batch_size", "learning_rate"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Configuration:
    """The hyperparameters of a training."""

    resolution: int
    architecture: str
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The model of one label: mean curves by configuration, residuals, CPU seconds of an epoch."""

    means: "_Means"
    residuals: Floats
    """[trainings, epochs + 1], scaled to the seeds' variance."""
    levels: Floats
    """[trainings] mean logit of the validation AUC after the last epoch. Similar levels share residuals."""
    seconds: Floats
    """Coefficients of the columns of `_costs`, then the intercept."""
    resolutions: tuple[int, ...]
    architectures: tuple[str, ...]

    def truth(self, configurations: list[Configuration]) -> Floats:
        """Mean test AUC over seeds, [N]."""
        return expit(self.means.of(self._features(configurations))[:, -1])

    def epoch_seconds(self, configurations: list[Configuration]) -> Floats:
        """CPU seconds of an epoch, [N]."""
        return np.exp(self._costs(configurations) @ self.seconds[:-1] + self.seconds[-1])

    def mean(self, configurations: list[Configuration]) -> Floats:
        """Logits, [N, epochs + 1]: validation after each epoch, then test."""
        return self.means.of(self._features(configurations))

    def noise(self, level: float, rng: np.random.Generator) -> Floats:
        """Draw the residual of a training of similar level, [epochs + 1]."""
        similar = np.argsort(np.abs(self.levels - level))[:_SIMILAR]
        return self.residuals[rng.choice(similar)] * rng.choice((-1, 1))

    def _features(self, configurations: list[Configuration]) -> Floats:
        return _features(_columns(configurations), self.architectures)

    def _costs(self, configurations: list[Configuration]) -> Floats:
        return _costs(_columns(configurations), self.resolutions, self.architectures)


@dataclass(frozen=True, eq=False)
class _Means:
    centre: Floats
    axes: Floats
    """[components, epochs + 1]"""
    processes: "list[_Process]"

    def of(self, features: Floats) -> Floats:
        return self.centre + np.column_stack([process(features) for process in self.processes]) @ self.axes


@dataclass(frozen=True, eq=False)
class _Process:
    """The mean of a fitted Gaussian process. It skips scikit-learn's checks, which are slow for single points."""

    lengths: Floats
    points: Floats
    """[trainings, features], divided by the lengths."""
    weights: Floats
    mean: float

    def __call__(self, features: Floats) -> Floats:
        distances = ((features / self.lengths)[:, None] - self.points) ** 2
        return self.mean + np.exp(-0.5 * distances.sum(axis=2)) @ self.weights


def fit(rows: pd.DataFrame) -> Surrogate:
    """Fit the model to one label's recorded trainings."""
    resolutions, architectures = (
        tuple(sorted(rows["resolution"].unique())),
        tuple(sorted(rows["architecture"].unique())),
    )
    curves = curve_logits(rows)
    means = _fit_means(_features(rows, architectures), curves)
    fitted = means.of(_features(rows, architectures))
    residuals = curves - fitted
    wanted = _seed_variance(rows, curves)
    residuals = residuals * np.sqrt(wanted / residuals.var(axis=0))
    costs = _costs(rows, resolutions, architectures)
    line = LinearRegression().fit(costs, np.log([np.median(seconds) for seconds in rows["epoch_seconds"]]))
    seconds = np.append(line.coef_, line.intercept_)
    return Surrogate(means, residuals, fitted[:, -2], seconds, resolutions, architectures)


def validate(rows: pd.DataFrame, *, folds: int = 5) -> dict[str, float]:
    """Cross-validated errors on unseen cells, and the standard deviation between seeds, in AUC."""
    cells = rows[_CELL].apply(tuple, axis=1)
    names = cells.unique()
    fold_of = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % folds, strict=True))
    fold = cells.map(fold_of).to_numpy()
    architectures = tuple(sorted(rows["architecture"].unique()))
    curves, features = curve_logits(rows), _features(rows, architectures)
    predicted = np.empty_like(curves)
    for held_out in range(folds):
        means = _fit_means(features[fold != held_out], curves[fold != held_out])
        predicted[fold == held_out] = means.of(features[fold == held_out])
    errors = expit(predicted) - expit(curves)
    seeds = np.sqrt(_seed_variance(rows, expit(curves)))
    measures = {}
    for name, column in (("validation", -2), ("test", -1)):
        measures[f"{name}_rmse"] = float(np.sqrt((errors[:, column] ** 2).mean()))
        measures[f"{name}_seed_sd"] = float(seeds[column])
        measures[f"{name}_r2"] = float(1 - (errors[:, column] ** 2).mean() / expit(curves)[:, column].var())
    return measures


def curve_logits(rows: pd.DataFrame) -> Floats:
    """[trainings, epochs + 1]. A training that diverged has AUC 0.5 from that epoch on."""
    epochs = max(len(aucs) for aucs in rows["epoch_aucs"])
    aucs = np.full((len(rows), epochs + 1), 0.5)
    for row, (curve, test) in enumerate(zip(rows["epoch_aucs"], rows["test_auc"], strict=True)):
        aucs[row, : len(curve)] = curve
        aucs[row, -1] = 0.5 if np.isnan(test) else test
    return logit(np.clip(aucs, 0.02, 0.995))


def _fit_means(features: Floats, curves: Floats) -> _Means:
    centre = curves.mean(axis=0)
    _, _, axes = np.linalg.svd(curves - centre, full_matrices=False)
    axes = axes[:_COMPONENTS]
    processes = []
    for component in ((curves - centre) @ axes.T).T:
        kernel = ConstantKernel(1.0) * RBF(np.ones(features.shape[1]), (0.1, 30)) + WhiteKernel(0.3)
        fitted = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(features, component)
        lengths, scale = fitted.kernel_.k1.k2.length_scale, fitted.kernel_.k1.k1.constant_value
        weights = scale * fitted.alpha_ * component.std()
        processes.append(_Process(lengths, features / lengths, weights, float(component.mean())))
    return _Means(centre, axes, processes)


def _seed_variance(rows: pd.DataFrame, values: Floats) -> Floats:
    """Variance between seeds of one cell, for each column, pooled over cells."""
    groups = pd.DataFrame(values).groupby([rows[name].to_numpy() for name in _CELL])
    variances, counts = groups.var(), groups.size().to_numpy()
    repeated = counts > 1
    assert repeated.sum() >= 5, "too few cells with two seeds: record more"
    weights = (counts[repeated] - 1)[:, None]
    return np.asarray((variances[repeated] * weights).sum() / weights.sum())


def _columns(configurations: list[Configuration]) -> dict[str, NDArray]:
    return {name: np.array([getattr(one, name) for one in configurations]) for name in _CELL}


def _features(rows: pd.DataFrame | dict[str, NDArray], architectures: tuple[str, ...]) -> Floats:
    return np.column_stack(
        [
            2 * np.log2(rows["resolution"] / 64),
            2.0 * (rows["architecture"] == architectures[-1]),
            np.log2(rows["batch_size"] / 16),
            2 * np.log10(rows["learning_rate"] / 3e-3),
        ]
    ).astype(np.float64)


def _costs(
    rows: pd.DataFrame | dict[str, NDArray], resolutions: tuple[int, ...], architectures: tuple[str, ...]
) -> Floats:
    """Columns of log seconds: one for each resolution of each architecture, two for the cost of small batches."""
    columns = [
        (rows["resolution"] == resolution) & (rows["architecture"] == architecture)
        for resolution in resolutions
        for architecture in architectures
    ]
    return np.column_stack([*columns, 1 / rows["batch_size"], np.log2(rows["batch_size"])]).astype(np.float64)
