"""What the phantoms' findings need by their geometry; `benchmarks/phantom_truth.py` is the script that measures it.

The full measurement (20,000 phantoms to train, 20,000 to test, a resolution) has not been run yet.
"""

from dataclasses import dataclass

MARGIN = 0.02
"""AUC by which a resolution may fall short and still count as adequate."""


@dataclass(frozen=True)
class Truth:
    """What one finding needs."""

    words: str
    smallest_adequate: int
    """px, among 32, 64 and 128, at MARGIN."""


TRUTH = {
    # A heart a tenth wider than a healthy one still is 2 px wider at 32 px.
    "Cardiomegaly": Truth("enlarged heart: any from 32 px", 32),
    # Nodules of 2 to 4 px at 128 px are at most one faint pixel at 32 px, among vessels seen end-on.
    "Nodule": Truth("small nodules: any from 64 px", 64),
    # A mesh of lines 2 to 2.5 px apart at 128 px; healthy lungs have what 96 px can show of one, so 64 px cannot tell.
    "Fibrosis": Truth("fine mesh in the lower lungs: 128 px", 128),
}
