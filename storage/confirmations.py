"""Store frozen protocols, uses of the test patients, and the score of every image.

Uses are counted over all experiments by the SHA-256 of the split before filters. They stay when an experiment is
deleted.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from acuity.storage.database import Database


@dataclass(frozen=True)
class StoredConfirmation:
    """A frozen protocol and, once the test patients are scored, its results."""

    id: int
    protocol: dict[str, Any]
    protocol_sha256: str
    split_sha256: str
    frozen: datetime
    results: dict[str, Any] | None


_COLUMNS = "id, protocol, protocol_sha256, split_sha256, frozen, results"


def freeze_protocol(
    database: Database,
    experiment: str,
    protocol: dict[str, Any],
    *,
    split_sha256: str,
    test_patients_sha256: str,
    margin: float,
    labels: Sequence[str],
) -> StoredConfirmation:
    """Store a protocol and count one use of its test patients, before a test patient is read.

    The identical protocol counts no second use. The protocol asked for last is the experiment's answer.
    split_sha256: of the split after filters. test_patients_sha256: of the split before filters.
    """
    canonical = json.dumps(protocol, sort_keys=True, allow_nan=False)
    row = {
        "experiment": experiment,
        "protocol": canonical,
        "protocol_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        "split_sha256": split_sha256,
        "test_patients_sha256": test_patients_sha256,
    }
    with database.engine.begin() as connection:
        is_new = connection.execute(
            text(
                "insert into acuity.confirmations (experiment, protocol, protocol_sha256, split_sha256) "
                "values (:experiment, :protocol, :protocol_sha256, :split_sha256) "
                "on conflict (experiment, protocol_sha256) do nothing"
            ),
            row,
        ).rowcount
        if is_new:
            connection.execute(
                text(
                    "insert into acuity.test_uses (split_sha256, experiment, protocol_sha256, margin, labels) "
                    "values (:test_patients_sha256, :experiment, :protocol_sha256, :margin, :labels)"
                ),
                row | {"margin": margin, "labels": list(labels)},
            )
        stored = connection.execute(
            text(
                "update acuity.confirmations set asked = clock_timestamp() "
                f"where experiment = :experiment and protocol_sha256 = :protocol_sha256 returning {_COLUMNS}"
            ),
            row,
        ).one()
    return StoredConfirmation(*stored)


def count_test_uses(database: Database, test_patients_sha256: str) -> int:
    """Number of protocols that were frozen for these test patients by all experiments, deleted ones included.

    test_patients_sha256: of the split before filters.
    """
    query = text("select count(*) from acuity.test_uses where split_sha256 = :test_patients_sha256")
    with database.engine.connect() as connection:
        return int(connection.scalars(query, {"test_patients_sha256": test_patients_sha256}).one())


def save_results(database: Database, confirmation_id: int, results: dict[str, Any]) -> None:
    """Store a confirmation's results."""
    statement = text("update acuity.confirmations set results = :results where id = :id")
    with database.engine.begin() as connection:
        connection.execute(statement, {"id": confirmation_id, "results": json.dumps(results, allow_nan=False)})


def find_confirmation(database: Database, experiment: str) -> StoredConfirmation | None:
    """The experiment's latest confirmation with results; None where there is none."""
    query = text(
        f"select {_COLUMNS} from acuity.confirmations where experiment = :experiment and results is not null "
        "order by asked desc, id desc limit 1"
    )
    with database.engine.connect() as connection:
        row = connection.execute(query, {"experiment": experiment}).one_or_none()
    return None if row is None else StoredConfirmation(*row)


def save_scores(
    database: Database,
    experiment: str,
    *,
    trial_id: int,
    index_sha256: str,
    fold: int | None,
    seed: int,
    parquet: bytes,
    replace: bool = False,
) -> None:
    """Store one network's scores of one image set. Existing scores stay, unless replace is true.

    fold: the fold that a cross-fitted network was not trained with. seed: of its training.
    """
    conflict = (
        "(trial_id, index_sha256) do update set parquet = excluded.parquet, scored = excluded.scored"
        if replace
        else "do nothing"
    )
    statement = text(
        "insert into acuity.scores (experiment, trial_id, index_sha256, fold, seed, parquet) "
        f"values (:experiment, :trial_id, :index_sha256, :fold, :seed, :parquet) on conflict {conflict}"
    )
    row = {
        "experiment": experiment,
        "trial_id": trial_id,
        "index_sha256": index_sha256,
        "fold": fold,
        "seed": seed,
        "parquet": parquet,
    }
    with database.engine.begin() as connection:
        connection.execute(statement, row)


def find_scores(database: Database, *, trial_id: int, index_sha256: str) -> bytes | None:
    """One network's scores of one image set as Parquet; None where there are none."""
    query = text("select parquet from acuity.scores where trial_id = :trial_id and index_sha256 = :index_sha256")
    with database.engine.connect() as connection:
        found = connection.scalars(query, {"trial_id": trial_id, "index_sha256": index_sha256}).one_or_none()
    return None if found is None else bytes(found)
