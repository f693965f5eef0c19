"""Multi-label stratification of patients: each part gets its share of every label's patients and images."""

from collections.abc import Sequence

import numpy as np


def stratify(
    images: np.ndarray, *, fractions: Sequence[float], known: np.ndarray, seed: np.random.SeedSequence
) -> np.ndarray:
    """The part of each patient: int64 [P], positions in fractions.

    images: float [P, L + 1], the positive images of each patient for each label; the last column has all images of the
    patient. known: int [P], the part of patients that already have one, -1 for the others.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, doi 10.1007/978-3-642-23808-6_10) distributes the
    label with the fewest unassigned patients first. Two things differ from the paper, since patients have 1 to 100
    images. First, both the patients of a label (they determine the precision of an AUC) and their images (they
    determine the training) are balanced: a patient joins the part where the sum of squared distances from the parts'
    shares, over all labels of the patient and both counts, grows least. For a single count this is Sainte-Laguë's rule.
    Second, patients with many images come first: the paper's rule of the largest remaining demand would put all of them
    into the largest part.
    """
    random = np.random.default_rng(seed)
    has = images > 0
    counts = np.concatenate([has, images], axis=1).astype(np.float64)
    shares = counts / np.maximum(counts.sum(axis=0), 1.0)
    parts = known.astype(np.int64).copy()
    filled = np.stack([shares[parts == part].sum(axis=0) for part in range(len(fractions))])
    weights = 1.0 / np.asarray(fractions, dtype=np.float64)
    order = _many_images_first(images[:, -1], random)
    order = order[parts[order] < 0]
    unassigned = has[order].sum(axis=0)
    while unassigned.any():
        rarest = int(np.where(unassigned > 0, unassigned, len(parts) + 1).argmin())
        for patient in order[(parts[order] < 0) & has[order, rarest]]:
            share = shares[patient]
            # Share in label c grows from a to a + s: (a + s)^2 - a^2 = 2 s (a + s/2), over the part's fraction.
            growth = weights * ((filled + share / 2) @ share)
            part = random.choice(np.flatnonzero(growth <= growth.min() * (1 + 1e-9)))
            parts[patient] = part
            filled[part] += share
            unassigned -= has[patient]
    return parts


def _many_images_first(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Patients sorted by floor(log2(number of images)), descending, in random order within each value."""
    shuffled = random.permutation(len(images))
    return shuffled[np.argsort(-np.floor(np.log2(images[shuffled])), kind="stable")]
