"""AUCs of resolutions from cross-fitted networks: each patient is scored by networks that were trained without them.

The AUC of a resolution is the mean over K folds, and over the networks of a fold, of the AUC within the fold (LeDell,
Petersen & van der Laan, Electron J Stat 2015;9:1583-1607). Scores of networks of different folds are never compared.
The folds have different patients, so the covariance over samples of patients is the sum of the folds' clustered DeLong
covariances, divided by K^2. This holds for fixed networks. The training patients of two folds overlap, and no variance
accounts for that (Bengio & Grandvalet, J Mach Learn Res 2004;5:1089-1105: it has no unbiased estimator).

The variance over seeds cannot be estimated on the folds, because each fold's networks have other patients. It is
estimated on the validation patients, which all networks score: s^2 / n for n networks of a resolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from acuity.objectives.errors import InputError
from acuity.objectives.statistics.delong import DelongComponents, combine, covariance, delong_components
from acuity.objectives.statistics.estimates import ResolutionEstimates, averaging_weights, patient_degrees
from acuity.objectives.statistics.metrics import auc

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Scores of N images of a fold's test patients or of the validation patients."""

    targets: ArrayLike
    """[N] of 1 and 0."""
    patients: ArrayLike
    """[N], any identifiers."""
    scores: Mapping[int, ArrayLike]
    """Resolution -> [networks, N]."""


def estimate_cross_fitted(folds: Sequence[ImageScores], *, validation: ImageScores) -> ResolutionEstimates:
    """AUCs of resolutions over the folds, with the variance over seeds from the validation patients.

    folds: each with the networks that were trained without its patients; no patient is in two of them. validation: with
    all networks. InputError with fewer than 2 positive or 2 negative patients in a fold, with fewer than 2 networks of
    a resolution, or with validation images of one kind only.
    """
    resolutions = tuple(sorted(validation.scores))
    networks = [np.asarray(validation.scores[resolution], dtype=np.float64) for resolution in resolutions]
    for resolution, rows in zip(resolutions, networks, strict=True):
        if len(rows) < 2:
            raise InputError(
                f"{resolution} px has {len(rows)} network, need at least 2 for the variance over seeds: raise "
                "[confirm] folds"
            )
    targets = np.asarray(validation.targets)
    if targets.min(initial=1) == targets.max(initial=0):
        raise InputError("the validation images are all positive or all negative: choose another label")
    of_folds = [_average_networks(fold, resolutions) for fold in folds]
    share = 1 / len(folds)
    weighted = [combine(each, share * np.eye(len(resolutions))) for each in of_folds]
    together = DelongComponents(
        aucs=np.sum([each.aucs for each in weighted], axis=0),
        positive=np.concatenate([each.positive for each in weighted], axis=1),
        negative=np.concatenate([each.negative for each in weighted], axis=1),
        positive_patients=sum(each.positive_patients for each in weighted),
        negative_patients=sum(each.negative_patients for each in weighted),
    )
    return ResolutionEstimates(
        resolutions=resolutions,
        aucs=tuple(map(float, together.aucs)),
        seed_aucs=tuple(tuple(auc(targets, row) for row in rows) for rows in networks),
        patient_covariance=np.sum([covariance(each) for each in weighted], axis=0),
        patient_degrees=patient_degrees(_less_one_patient_per_fold(together, folds=len(folds))),
        positive_patients=together.positive_patients,
        negative_patients=together.negative_patients,
    )


def _average_networks(fold: ImageScores, resolutions: Sequence[int]) -> DelongComponents:
    """One row per resolution: the components averaged over the fold's networks of that resolution."""
    networks = [np.asarray(fold.scores[resolution], dtype=np.float64) for resolution in resolutions]
    components = delong_components(fold.targets, np.concatenate(networks), fold.patients)
    return combine(components, averaging_weights([len(rows) for rows in networks]))


def _less_one_patient_per_fold(components: DelongComponents, *, folds: int) -> DelongComponents:
    """The components with K - 1 patients of each kind less, since each fold has its own mean: for `patient_degrees`."""
    return replace(
        components,
        positive_patients=components.positive_patients - folds + 1,
        negative_patients=components.negative_patients - folds + 1,
    )
