"""`acuity score`: score an external image set with the confirmed networks. No choice depends on this image set."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from acuity.objectives.device.device import open_for_scoring
from acuity.objectives.errors import InputError
from acuity.objectives.images.cache import build_cache
from acuity.objectives.index.image_index import ImageIndex
from acuity.storage.confirmations import find_confirmation, find_scores
from acuity.storage.database import Database
from acuity.study.config.paths import cache_folder
from acuity.study.config.schema import Experiment
from acuity.study.confirmation.protocol import LabelProtocol, Protocol, read_protocol
from acuity.study.confirmation.scoring import Scorer, score_external, unpack
from acuity.study.confirmation.verdict import ScoreTables, conclude_label
from acuity.study.dataset.selection import select_images
from acuity.study.display.console import decoding_bar, scoring_bar
from acuity.study.errors import UsageError
from acuity.study.registry.record import Registered, checkpoints_of
from acuity.study.registry.sources import check_same_sources

logger = logging.getLogger(__name__)


def score_index(
    database: Database, registered: Registered, index_path: Path, *, images: Path | None, device: str, console: Console
) -> list[dict[str, Any]]:
    """Score the images of an external index with each finalist's networks, and return the results of each label.

    images: the folder of the image files, by default `images` beside the index. The filters of the experiment apply to
    the external index. Reference, margin and thresholds are frozen. A label that is missing or has too few patients is
    left out. UsageError where no label is left, or where the index shares images or patients with the experiment's
    index.
    """
    check_same_sources(registered)
    stored = find_confirmation(database, registered.experiment.name)
    if stored is None:
        raise UsageError(
            f"{registered.experiment.name} is not confirmed, so no network of it is kept: acuity confirm "
            f"{registered.experiment.name} comes first"
        )
    protocol = read_protocol(stored.protocol)
    external, index = _read_external(registered.experiment, index_path, images or index_path.parent / "images")
    if index.sha256 == protocol.index_sha256:
        raise UsageError(f"{index_path} is the experiment's own index, whose test patients `acuity confirm` scores")
    _check_disjoint(registered, index)
    labels = [label for label in protocol.labels if label.label in index.labels]
    if not labels:
        raise UsageError(
            f"{index_path} has none of the confirmed labels ({', '.join(label.label for label in protocol.labels)}). "
            f"There are: {', '.join(index.labels)}"
        )
    with decoding_bar(console) as progress:
        cache = build_cache(
            index,
            folder=cache_folder(external, index.files_sha256),
            resolutions=sorted({finalist.resolution for label in labels for finalist in label.finalists}),
            fit=external.data.fit,
            on_bad_image=external.data.on_bad_image,
            progress=progress,
        )
    scorer = Scorer(database, registered.experiment, checkpoints_of(registered), open_for_scoring(device))
    results = []
    with scoring_bar(console, sum(len(finalist.runs) for label in labels for finalist in label.finalists)) as done:
        for label in labels:
            tables = score_external(scorer, index, cache, label, done=done)
            try:
                results.append(
                    conclude_label(
                        label,
                        _with_validation(database, protocol, label, tables),
                        protocol.design,
                        margin=protocol.margin,
                        part="external",
                    )
                )
            except InputError as error:
                console.print(f"{label.label} is left out: {error}", highlight=False)
    if not results:
        raise UsageError(
            f"{index_path} has too few patients for an AUC of any confirmed label: add patients with and without the "
            "findings, or score another image set"
        )
    return results


def _read_external(experiment: Experiment, index: Path, images: Path) -> tuple[Experiment, ImageIndex]:
    """The experiment with another index and its images, and that index.

    The other data settings are the same. [data] columns are used if the index has them, else its format is found.
    """
    data = replace(
        experiment.data, index=index, images=images, split=None, format=None, train_val_list=None, test_list=None
    )
    external = replace(experiment, data=data)
    if data.columns is not None:
        try:
            return external, select_images(external).index
        except InputError as error:
            logger.info("the experiment's columns do not fit %s: %s", index.name, error)
            external = replace(experiment, data=replace(data, columns=None))
    return external, select_images(external).index


def _check_disjoint(registered: Registered, index: ImageIndex) -> None:
    """UsageError where the index shares images or patients with the unfiltered index of the experiment."""
    name = registered.experiment.name
    try:
        own = select_images(registered.experiment)
    except (InputError, UsageError, OSError) as error:
        logger.warning("whether %s has images or patients of %s could not be checked: %s", index.path, name, error)
        return
    if own.index.sha256 != registered.identity.index_sha256:
        logger.warning(
            "%s is no longer the index that %s was trained with, so whether %s has images or patients of it could be "
            "checked in part only",
            own.whole.path,
            name,
            index.path,
        )
    new_patients = set(index.table["patient"])
    images = len(set(index.names) & set(own.whole.names))
    patients = len(new_patients & set(own.whole.table["patient"]))
    if images or patients:
        raise UsageError(
            f"{index.path}: {images:,} of its {len(index.names):,} images and {patients:,} of its "
            f"{len(new_patients):,} patients are in {name}'s own index. Its networks were trained on it, and only "
            "`acuity confirm` scores its test patients. Leave them out; if different images or patients have the same "
            "names, rename them, for example with a prefix"
        )


def _with_validation(database: Database, protocol: Protocol, label: LabelProtocol, tables: ScoreTables) -> ScoreTables:
    """Add the validation scores of each network, on which its thresholds are chosen, to its external scores."""

    def add_validation(trial_id: int, table: pd.DataFrame) -> pd.DataFrame:
        own = find_scores(database, trial_id=trial_id, index_sha256=protocol.index_sha256)
        assert own is not None, "a confirmed network has scored its own index"
        own_table = unpack(own)
        return pd.concat([own_table[own_table["part"] == "validation"], table], ignore_index=True)

    return {
        finalist.resolution: [
            add_validation(run.trial_id, table)
            for run, table in zip(finalist.runs, tables[finalist.resolution], strict=True)
        ]
        for finalist in label.finalists
    }
