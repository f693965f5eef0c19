"""Tables that `acuity confirm` prints before it trains and before it reads a test patient."""

from rich.console import Group
from rich.text import Text

from acuity.storage.confirmations import StoredConfirmation
from acuity.study.confirmation.protocol import Protocol
from acuity.study.confirmation.trials import LabelConfirmation
from acuity.study.display.plain_table import plain_table
from acuity.study.units import counted, format_duration, format_times


def plan_table(labels: list[LabelConfirmation], *, done: int, workers: int) -> Group:
    """One row per label with its nominees and number of trainings; below the table, their cost."""
    resolutions_heading, design = "resolutions (search's best AUC)", labels[0].plan.design
    table = plain_table("label", resolutions_heading, "nominees", "trainings", text=(resolutions_heading,))
    for label in labels:
        best = {
            resolution: max(nominee.auc for nominee in nominees)
            for resolution, nominees in label.plan.resolutions().items()
        }
        table.add_row(
            Text(label.nomination.label),
            ", ".join(f"{resolution} px ({auc:.3f})" for resolution, auc in best.items()),
            str(len(label.plan.nominees)),
            str(label.plan.trainings()),
        )
    total = sum(label.plan.trainings() for label in labels)
    seconds = sum(map(_training_seconds, labels))
    cost = (
        f"Confirmation: {design.describe()}. At most {total} trainings ({design.networks_in_words} of each "
        f"finalist, 1 of each other nominee; the largest resolution first), {done} of them done; at the "
        f"search's speed about {format_duration(seconds)} of training in all, {format_duration(seconds / workers)} "
        f"with {counted(workers, 'worker')}."
    )
    return Group(table, Text(cost))


def _training_seconds(label: LabelConfirmation) -> float:
    """Time of all trainings of a label if the slowest nominee of each resolution becomes its finalist."""
    return sum(
        sum(nominee.seconds for nominee in nominees)
        + (label.plan.design.networks - 1) * max(nominee.seconds for nominee in nominees)
        for nominees in label.plan.resolutions().values()
    )


def protocol_table(protocol: Protocol, stored: StoredConfirmation, *, uses: int) -> Group:
    """The frozen protocol, one row per finalist."""
    table = plain_table(
        "label", "px", "architecture", "batch", "learning rate", "trials", "networks", "validation AUC", "",
        text=("architecture", ""),
        title="Frozen before any score of a test patient is read",
    )  # fmt: skip
    for label in protocol.labels:
        for finalist in label.finalists:
            table.add_row(
                Text(label.label),
                str(finalist.resolution),
                finalist.architecture,
                str(finalist.batch_size),
                f"{finalist.learning_rate:.2g}",
                str(finalist.trials),
                str(len(finalist.runs)),
                f"{finalist.validation_auc:.3f}",
                "reference" if finalist.resolution == label.reference else "",
            )
    return Group(
        table,
        Text(
            f"{protocol.design.describe()}; margin {protocol.margin:g} AUC; split {protocol.split_sha256[:12]}; "
            f"{f'folds {protocol.design.folds_sha256[:12]}; ' if protocol.design.folds_sha256 else ''}protocol "
            f"{stored.protocol_sha256[:12]}, frozen {stored.frozen:%Y-%m-%d %H:%M} UTC; the test patients have been "
            f"used {format_times(uses)}."
        ),
    )
