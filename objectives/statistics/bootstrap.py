"""Patient bootstrap of AUCs, which checks the standard errors of the formulas."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from acuity.objectives.errors import InputError

Floats = NDArray[np.float64]
_BATCH_ELEMENTS = 2_000_000  # 16 MB per intermediate array


def bootstrap_aucs(
    targets: ArrayLike, scores: ArrayLike, patients: ArrayLike, *, repetitions: int = 2000, seed: int = 0
) -> Floats:
    """AUCs [repetitions, K] of K networks on bootstrap samples of patients (Efron & Tibshirani 1993, ch. 8).

    targets: [N] of 1 and 0. scores: [K, N]. patients: [N]. All networks share the sample of a repetition, so a
    difference or a mean over seeds can be computed in each row. A sample whose targets are all equal is drawn again.
    InputError where all targets are equal.
    """
    positive, values = np.asarray(targets) == 1, np.asarray(scores, dtype=np.float64)
    if positive.all() or not positive.any():
        raise InputError(
            f"{int(positive.sum())} of {positive.size} images have the finding, an AUC needs both: choose another label"
        )
    clusters, codes = np.unique(np.asarray(patients), return_inverse=True)
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH_ELEMENTS // positive.size)
    rows: list[Floats] = []
    remaining = repetitions
    while remaining:
        draws = generator.multinomial(
            clusters.size, np.full(clusters.size, 1 / clusters.size), size=min(batch, remaining)
        )
        weights = draws[:, codes].astype(np.float64)
        weights = weights[weights[:, positive].any(axis=1) & weights[:, ~positive].any(axis=1)]
        rows.append(np.stack([_weighted_aucs(positive, row, weights) for row in values], axis=1))
        remaining -= len(weights)
    return np.concatenate(rows)


def _weighted_aucs(positive: NDArray[np.bool_], values: Floats, weights: Floats) -> Floats:
    """AUC of one network under each row of image weights [B, N]."""
    order = np.argsort(values, kind="stable")
    ascending, sorted_weights, sorted_positive = values[order], weights[:, order], positive[order]
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
    found = np.add.reduceat(sorted_weights * sorted_positive, starts, axis=1)
    others = np.add.reduceat(sorted_weights * ~sorted_positive, starts, axis=1)
    below = np.cumsum(others, axis=1) - others / 2
    ranked: Floats = (found * below).sum(axis=1) / (found.sum(axis=1) * others.sum(axis=1))
    return ranked
