"""Smallest adequate resolution of each finding of the phantoms, measured by `benchmarks/validity/phantom_truth.py`."""

from dataclasses import dataclass

MARGIN = 0.02
"""An adequate resolution has an AUC less than this below the best."""


@dataclass(frozen=True)
class Truth:
    """Smallest adequate resolution of a finding, with the AUCs of a small network.

    The network was trained on 20,000 phantoms and tested on as many others.
    """

    description: str
    """The finding and its smallest adequate resolution, for users."""
    smallest_adequate: int
    """Resolution in px, among 32, 64 and 128, at MARGIN."""
    auc: dict[int, float]
    """AUC by resolution in px."""
    standard_error: dict[int, float]
    """Standard error of the AUC, clustered by patient."""


TRUTH = {
    # A heart that is a tenth wider than a healthy one is 2 px wider at 32 px.
    "Cardiomegaly": Truth(
        "enlarged heart: any from 32 px",
        32,
        auc={32: 0.9543, 64: 0.9544, 128: 0.9542},
        standard_error={32: 0.0026, 64: 0.0026, 128: 0.0027},
    ),
    # At 32 px, nodules of 3 to 4 px at 128 px are one brighter pixel, as vessels seen end-on are.
    "Nodule": Truth(
        "small nodules: any from 64 px",
        64,
        auc={32: 0.8208, 64: 0.9384, 128: 0.9413},
        standard_error={32: 0.0046, 64: 0.0042, 128: 0.0040},
    ),
    # A mesh of lines 2.1 to 2.6 px apart at 128 px; at 64 px, lungs without fibrosis have the same texture.
    "Fibrosis": Truth(
        "fine mesh in the lower lungs: 128 px",
        128,
        auc={32: 0.5141, 64: 0.5207, 128: 0.9336},
        standard_error={32: 0.0055, 64: 0.0061, 128: 0.0044},
    ),
}
