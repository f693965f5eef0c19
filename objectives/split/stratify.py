"""Share patients out so that every label, and the images, come close to each part's share."""

from collections.abc import Sequence

import numpy as np


def stratify(
    images: np.ndarray, *, fractions: Sequence[float], known: np.ndarray, seed: np.random.SeedSequence
) -> np.ndarray:
    """The part of each patient: int64 [P], positions in fractions.

    images: float [P, L + 1], each patient's positive images for each label, and last all of the patient's images.
    known: int [P], the part of patients who have one already and keep it, -1 for the others.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, doi 10.1007/978-3-642-23808-6_10): the label with
    the fewest patients left is shared out first, while there is still a choice. It differs in what is balanced, since
    patients bring one image or a hundred: of each label both the patients (they decide how well an AUC is known) and
    their images (they decide what is learnt). A patient goes where the sum of squared distances from the parts' shares,
    over all of the patient's labels and both counts, grows least; for one count this is Sainte-Laguë's rule. Patients
    with many images come first; the paper's largest remaining demand would put all of those into the largest part.
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
    left = has[order].sum(axis=0)
    while left.any():
        rarest = int(np.where(left > 0, left, len(parts) + 1).argmin())
        for patient in order[(parts[order] < 0) & has[order, rarest]]:
            share = shares[patient]
            # Share in label c grows from a to a + s: (a + s)^2 - a^2 = 2 s (a + s/2), over the part's fraction.
            growth = weights * ((filled + share / 2) @ share)
            part = random.choice(np.flatnonzero(growth <= growth.min() * (1 + 1e-9)))
            parts[patient] = part
            filled[part] += share
            left -= has[patient]
    return parts


def _many_images_first(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Patients by doublings of their number of images, in random order within one."""
    shuffled = random.permutation(len(images))
    return shuffled[np.argsort(-np.floor(np.log2(images[shuffled])), kind="stable")]
