"""Claim: at a margin of 0.02 AUC, phantoms' Cardiomegaly needs 32 px, Nodule 64 px and Fibrosis 128 px.

One small network per resolution is trained (all three findings together, one logit each) and tested on phantoms of
other patients. The phantoms are the same at every resolution. `objectives/phantoms/truth.py` holds the expected values.
Without arguments there are 20,000 training and 20,000 test phantoms, about half an hour on two cores. Argument: IMAGES,
the number of training phantoms and of test phantoms.
"""

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F

from acuity.objectives.phantoms.generator import LABELS, draw_phantoms
from acuity.objectives.phantoms.truth import MARGIN, TRUTH
from acuity.objectives.statistics.delong import auc_standard_error
from acuity.objectives.statistics.metrics import auc

sys.path.append(str(Path(__file__).parents[1]))
from result_line import make_goal, print_result

RESOLUTIONS = (32, 64, 128)
EPOCHS = 6
BATCH = 64
RATE = 4e-3
_CHUNK = 500


def main() -> None:
    """Draw, train, test, print the table and one line of JSON."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with multiprocessing.get_context("spawn").Pool() as pool:
        training = _join(pool.imap(_draw_chunk, range(0, images, _CHUNK)))
        testing = _join(pool.imap(_draw_chunk, range(1_000_000, 1_000_000 + images, _CHUNK)))
    print(f"{len(training[0])} phantoms to train, {len(testing[0])} to test", file=sys.stderr)
    print(f"{'px':>4}  " + "  ".join(f"{label:>20}" for label in LABELS))
    table: dict[int, list[tuple[float, float]]] = {}
    for resolution in RESOLUTIONS:
        began = time.perf_counter()
        scores = _train_and_score(training, testing[0], resolution)
        table[resolution] = [
            (
                auc(testing[1][:, k], scores[:, k]),
                auc_standard_error(testing[1][:, k], scores[:, k], testing[2]),
            )
            for k in range(len(LABELS))
        ]
        cells = "  ".join(f"{area:.4f} +- {error:.4f}".rjust(20) for area, error in table[resolution])
        print(f"{resolution:>4}  {cells}   ({time.perf_counter() - began:.0f} s)", flush=True)
    aucs = {
        str(resolution): {label: [round(value, 4) for value in cell] for label, cell in zip(LABELS, row, strict=True)}
        for resolution, row in table.items()
    }
    print_result("phantom_truth", n=images, goals=_goals(table), auc=aucs)


def _draw_chunk(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cv2.setNumThreads(1)
    phantoms = list(draw_phantoms(_CHUNK, seed=seed))
    pixels = np.stack([phantom.pixels for phantom in phantoms])
    targets = np.array([[label in phantom.findings for label in LABELS] for phantom in phantoms], dtype=np.float32)
    return pixels, targets, np.array([seed * _CHUNK + phantom.patient for phantom in phantoms])


def _join(chunks: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pixels, targets, patients = zip(*chunks, strict=True)  # type: ignore[call-overload]
    return np.concatenate(pixels), np.concatenate(targets), np.concatenate(patients)


def _resize(pixels: np.ndarray, resolution: int) -> torch.Tensor:
    if pixels.shape[1] != resolution:
        pixels = np.stack([cv2.resize(image, (resolution,) * 2, interpolation=cv2.INTER_AREA) for image in pixels])
    return torch.from_numpy(pixels).unsqueeze(1)


def _train_and_score(
    training: tuple[np.ndarray, np.ndarray, np.ndarray], test_pixels: np.ndarray, resolution: int
) -> np.ndarray:
    torch.manual_seed(0)
    images, targets = _resize(training[0], resolution), torch.from_numpy(training[1])
    network = timm.create_model("test_resnet", in_chans=1, num_classes=len(LABELS))
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps * EPOCHS)
    for _ in range(EPOCHS):
        network.train()
        order = torch.randperm(len(images))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            loss = F.binary_cross_entropy_with_logits(network(_normalise(images[rows])), targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        logits = [network(_normalise(batch)) for batch in _resize(test_pixels, resolution).split(500)]
    return torch.cat(logits).numpy()


def _normalise(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def _goals(table: dict[int, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    goals = []
    for k, label in enumerate(LABELS):
        top = max(table[resolution][k][0] for resolution in RESOLUTIONS)
        adequate = min(resolution for resolution in RESOLUTIONS if table[resolution][k][0] > top - MARGIN)
        known = TRUTH[label].smallest_adequate
        goals.append(make_goal(f"smallest_adequate_{label}", adequate, f"== {known}", met=adequate == known))
    return goals


if __name__ == "__main__":
    main()
