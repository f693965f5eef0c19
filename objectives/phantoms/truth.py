"""What the phantoms' findings need, measured by `benchmarks/validity/phantom_truth.py`."""

from dataclasses import dataclass

MARGIN = 0.02
"""AUC by which a resolution may fall short and still count as adequate."""


@dataclass(frozen=True)
class Truth:
    """What one finding needs, and the AUC that a small network reaches on 20,000 phantoms after as many others."""

    words: str
    smallest_adequate: int
    """px, among 32, 64 and 128, at MARGIN."""
    auc: dict[int, float]
    """By resolution in px."""
    standard_error: dict[int, float]
    """Of that AUC, by patient."""


TRUTH = {
    # A heart a tenth wider than a healthy one still is 2 px wider at 32 px.
    "Cardiomegaly": Truth(
        "enlarged heart: any from 32 px",
        32,
        auc={32: 0.9543, 64: 0.9544, 128: 0.9542},
        standard_error={32: 0.0026, 64: 0.0026, 128: 0.0027},
    ),
    # Nodules of 3 to 4 px at 128 px are at 32 px one brighter pixel, as vessels seen end-on are.
    "Nodule": Truth(
        "small nodules: any from 64 px",
        64,
        auc={32: 0.8208, 64: 0.9384, 128: 0.9413},
        standard_error={32: 0.0046, 64: 0.0042, 128: 0.0040},
    ),
    # A mesh of lines 2.1 to 2.6 px apart at 128 px; healthy lungs have what 64 px can show of one.
    "Fibrosis": Truth(
        "fine mesh in the lower lungs: 128 px",
        128,
        auc={32: 0.5141, 64: 0.5207, 128: 0.9336},
        standard_error={32: 0.0055, 64: 0.0061, 128: 0.0044},
    ),
}
