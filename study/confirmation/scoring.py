"""Scores of images by the networks of finalists, stored as Parquet without identifiers.

The pseudonyms of patients and images are HMACs. Their key is derived from the filtered index, so only a holder of the
index can link a pseudonym to a patient. The metadata of a table identify the pixels and rows that were scored.
"""

import hashlib
import hmac
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from acuity.objectives.device.device import Device
from acuity.objectives.images.cache import ImageCache
from acuity.objectives.index.image_index import ImageIndex
from acuity.objectives.statistics.metrics import auc
from acuity.objectives.training.prediction import score_images
from acuity.storage.checkpoints import Checkpoints
from acuity.storage.confirmations import find_scores, save_scores
from acuity.storage.database import Database
from acuity.study.config.schema import Experiment
from acuity.study.confirmation.protocol import Finalist, LabelProtocol, Run
from acuity.study.dataset.design import Design
from acuity.study.dataset.image_set import ImageSet, open_folds
from acuity.study.errors import UsageError
from acuity.study.search.hyperparameters import make_hyperparameters

_AUC_TOLERANCE, _TOLERATED_PAIRS = 0.01, 4
"""Devices round differently, so a few pairs of a positive and a negative image are ordered in another way. A network
whose validation AUC differs by more, and by more than these pairs, is not the trained network. A label may have 5
positive and 5 negative validation patients: one of their 25 pairs is an AUC of .04."""
_AGE_BANDS = (20, 40, 60, 80)
Parts = Mapping[str, NDArray[np.int64]]
"""Part -> rows of the index."""
COLUMNS = ("image", "patient", "part", "target", "view", "sex", "age_band", "score")
"""Columns of a table of scores. image and patient are pseudonyms; part is validation, test or external."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """The database, experiment, checkpoints and device with which images are scored."""

    database: Database
    experiment: Experiment
    checkpoints: Checkpoints
    device: Device


def score_label(
    scorer: Scorer, image_set: ImageSet, protocol: LabelProtocol, design: Design, *, done: Callable[[], None]
) -> dict[int, list[pd.DataFrame]]:
    """Scores of a label's validation and test images by resolution: one table (COLUMNS) per network.

    The test images of a cross-fitted network are those of its fold. Each network scores its test patients once. Later
    calls read the stored scores. UsageError where the stored scores are of other pixels or rows, or where the folds are
    not those of the protocol. done is called after each network.
    """
    known = np.flatnonzero(np.isfinite(image_set.index.target(protocol.label)))
    validation = np.intersect1d(image_set.split.rows("validation"), known)
    test: dict[int | None, NDArray[np.int64]] = {None: image_set.split.rows("test")}
    if design.folds is not None:
        folds = open_folds(image_set, design.folds)
        if folds.sha256 != design.folds_sha256:
            raise UsageError(f"{folds.path}: has other folds than the protocol; put back the file as it was")
        test = {fold: folds.test_rows(fold) for fold in range(design.folds)}
    parts = {fold: {"validation": validation, "test": np.intersect1d(rows, known)} for fold, rows in test.items()}
    return _score_finalists(
        scorer, image_set.index, image_set.cache, protocol, lambda run: parts[run.fold], once=True, done=done
    )


def score_external(
    scorer: Scorer, index: ImageIndex, cache: ImageCache, protocol: LabelProtocol, *, done: Callable[[], None]
) -> dict[int, list[pd.DataFrame]]:
    """Scores of all external images with a known label, as part "external". Stale scores are replaced."""
    known = np.isfinite(index.target(protocol.label))
    known[[image.row for image in cache.bad]] = False
    parts = {"external": np.flatnonzero(known)}
    return _score_finalists(scorer, index, cache, protocol, lambda _: parts, once=False, done=done)


def read_checkpoint(checkpoints: Checkpoints, run: Run, *, resolution: int) -> bytes:
    """The packed checkpoint of a finalist's network. UsageError where it is missing."""
    checkpoint = checkpoints.read(run.checkpoint_study, run.origin, attempt=run.attempt)
    if checkpoint is None:
        raise UsageError(
            f"the network of {_name(run, resolution)} is not in {checkpoints.folder}, or is damaged: run this where "
            "the fleet's checkpoints are, or put it back"
        )
    return checkpoint


def check_validation_auc(targets: ArrayLike, scores: NDArray[np.float64], run: Run, *, resolution: int) -> None:
    """UsageError where a stored network does not reproduce the validation AUC of its training.

    targets: of the validation images, 1 or 0. scores: of the stored network.
    """
    validation_auc, positive = auc(targets, scores), np.asarray(targets) == 1
    pairs = int(positive.sum()) * int((~positive).sum())
    if abs(validation_auc - run.validation_auc) > max(_AUC_TOLERANCE, _TOLERATED_PAIRS / pairs + 1e-9):
        raise UsageError(
            f"the kept network of {_name(run, resolution)} has a validation AUC of {validation_auc:.3f}, its training "
            f"had {run.validation_auc:.3f}: it is not the one that was trained; put back that checkpoint"
        )


def unpack(parquet: bytes) -> pd.DataFrame:
    """A stored table of scores. Its attrs identify the pixels and rows that were scored."""
    return pd.read_parquet(io.BytesIO(parquet))


def _score_finalists(
    scorer: Scorer,
    index: ImageIndex,
    cache: ImageCache,
    protocol: LabelProtocol,
    parts_of: Callable[[Run], Parts],
    *,
    once: bool,
    done: Callable[[], None],
) -> dict[int, list[pd.DataFrame]]:
    images_of: dict[int | None, pd.DataFrame] = {}
    for run in (run for finalist in protocol.finalists for run in finalist.runs):
        if run.fold not in images_of:
            images = images_of[run.fold] = _image_table(index, protocol.label, parts_of(run))
            images.attrs = {"pixels": cache.key, "rows": _rows_sha256(parts_of(run))}  # Parquet keeps them
    for finalist in protocol.finalists:
        for run in finalist.runs:  # every stored table is checked before any test patient is scored
            _read_scores(scorer.database, index, images_of[run.fold], finalist, run, once=once)
    tables: dict[int, list[pd.DataFrame]] = {}
    for finalist in protocol.finalists:
        tables[finalist.resolution] = []
        for run in finalist.runs:
            images = images_of[run.fold]
            table = _read_scores(scorer.database, index, images, finalist, run, once=once)
            if table is None:
                pixels, target = cache.open(finalist.resolution), index.target(protocol.label)
                table = images.assign(score=_score_run(scorer, pixels, target, finalist, run, parts_of(run)))
                save_scores(
                    scorer.database,
                    scorer.experiment.name,
                    trial_id=run.trial_id,
                    index_sha256=index.sha256,
                    fold=run.fold,
                    seed=run.seed,
                    parquet=_pack(table),
                    replace=not once,
                )
            tables[finalist.resolution].append(table)
            done()
    return tables


def _image_table(index: ImageIndex, label: str, parts: Parts) -> pd.DataFrame:
    rows = np.concatenate(list(parts.values()))
    table = index.table.iloc[rows]
    key = _pseudonym_key(index)
    return pd.DataFrame(
        {
            "image": _pseudonyms([index.names[row] for row in rows], key),
            "patient": _pseudonyms(table["patient"].tolist(), key),
            "part": np.repeat(list(parts), [len(of_part) for of_part in parts.values()]),
            "target": index.target(label)[rows].astype(np.int8),
            "view": table["view"].to_numpy(dtype=object),
            "sex": table["sex"].to_numpy(dtype=object),
            "age_band": [_age_band(age) for age in table["age"]],
        }
    )


def _pseudonym_key(index: ImageIndex) -> bytes:
    """A secret derived from the content of the index, not from its folders. It differs from the stored SHA-256."""
    digest = hashlib.sha256(b"acuity pseudonyms")
    for column in (index.table["patient"], index.names):
        digest.update("\0".join(column).encode())
    return digest.digest()


def _pseudonyms(names: Sequence[str], key: bytes) -> list[str]:
    known = {name: hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:16] for name in set(names)}
    return [known[name] for name in names]


def _age_band(age: float) -> str:
    if not np.isfinite(age):
        return ""
    lowest = max((edge for edge in (0, *_AGE_BANDS) if edge <= age), default=0)
    highest = next((edge for edge in _AGE_BANDS if edge > lowest), None)
    return f"{lowest}-{highest - 1}" if highest else f"{lowest}+"


def _rows_sha256(parts: Parts) -> str:
    return hashlib.sha256(json.dumps({part: rows.tolist() for part, rows in parts.items()}).encode()).hexdigest()


def _read_scores(
    database: Database, index: ImageIndex, images: pd.DataFrame, finalist: Finalist, run: Run, *, once: bool
) -> pd.DataFrame | None:
    """The images with their stored scores. None where no scores are stored.

    Stale scores are a UsageError where images are scored once; otherwise None is returned for them.
    """
    parquet = find_scores(database, trial_id=run.trial_id, index_sha256=index.sha256)
    if parquet is None:
        return None
    stored = unpack(parquet)
    change = _explain_mismatch(stored, images)
    if change is None:
        return images.assign(score=stored["score"].to_numpy())
    if once:
        raise UsageError(
            f"the network of {_name(run, finalist.resolution)} has scored its test patients, which is done once, but "
            f"{change}. Put the images back as they were then, or give the experiment another name: that is one more "
            "use of the test patients"
        )
    return None


def _explain_mismatch(stored: pd.DataFrame, images: pd.DataFrame) -> str | None:
    """Why the stored scores are not of these images. None if they are."""
    if len(stored) != len(images):
        return f"it scored {len(stored):,} images then and would score {len(images):,} now"
    same = all((stored[column].to_numpy() == images[column].to_numpy()).all() for column in ("part", "target"))
    if not same or stored.attrs["rows"] != images.attrs["rows"]:
        return "other images are left out now (as bad, or as repeats of images in an earlier part) than then"
    if stored.attrs["pixels"] != images.attrs["pixels"]:
        return "the images' files have changed since"
    return None


def _score_run(
    scorer: Scorer,
    pixels: NDArray[np.uint8],
    target: NDArray[np.float32],
    finalist: Finalist,
    run: Run,
    parts: Parts,
) -> NDArray[np.float64]:
    checkpoint = read_checkpoint(scorer.checkpoints, run, resolution=finalist.resolution)
    hyperparameters = make_hyperparameters(
        scorer.experiment,
        architecture=finalist.architecture,
        resolution=finalist.resolution,
        batch_size=finalist.batch_size,
        learning_rate=finalist.learning_rate,
    )
    scores = []
    for part, rows in parts.items():
        scores.append(score_images(checkpoint, hyperparameters, pixels, rows, device=scorer.device.torch_device))
        if part == "validation":  # before any test patient
            check_validation_auc(target[rows], scores[-1], run, resolution=finalist.resolution)
    return np.concatenate(scores)


def _name(run: Run, resolution: int) -> str:
    return f"{run.checkpoint_study} at {resolution} px, seed {run.seed}"


def _pack(table: pd.DataFrame) -> bytes:
    assert tuple(table.columns) == COLUMNS
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()
