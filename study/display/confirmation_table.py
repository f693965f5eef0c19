"""Tables that `acuity confirm` prints before it trains and before it reads a test patient."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from acuity.storage.confirmations import StoredConfirmation
from acuity.study.confirmation.protocol import Protocol
from acuity.study.confirmation.trials import Confirming
from acuity.study.units import format_duration


def plan_table(labels: list[Confirming], *, done: int, workers: int) -> Group:
    """One row per label with its nominees and number of trainings; below the table, their cost."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("label", "resolutions (search's best AUC)", "nominees", "trainings"):
        table.add_column(heading, justify="right" if heading in ("nominees", "trainings") else "left")
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
    seconds = sum(map(_seconds, labels))
    seeds = labels[0].plan.seeds
    cost = (
        f"{total} trainings (one of each nominee, {seeds} in all of each finalist), {min(done, total)} of "
        f"them done; at the search's speed about {format_duration(seconds)} of training in all, "
        f"{format_duration(seconds / workers)} with {workers} worker{'s' if workers > 1 else ''}."
    )
    return Group(table, Text(cost))


def _seconds(label: Confirming) -> float:
    return sum(
        sum(nominee.seconds for nominee in nominees)
        + (label.plan.seeds - 1) * max(nominee.seconds for nominee in nominees)
        for nominees in label.plan.resolutions().values()
    )


def protocol_table(protocol: Protocol, stored: StoredConfirmation, *, uses: int) -> Group:
    """The frozen protocol, one row per finalist."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="Frozen before any test patient is read")
    for heading in ("label", "px", "architecture", "batch", "learning rate", "trials", "seeds", "validation AUC", ""):
        table.add_column(heading, justify="left" if heading in ("label", "architecture", "") else "right")
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
            f"margin {protocol.margin:g} AUC; split {protocol.split_sha256[:12]}; protocol "
            f"{stored.protocol_sha256[:12]}, frozen {stored.frozen:%Y-%m-%d %H:%M} UTC; {uses_sentence(uses)}"
        ),
    )


def uses_sentence(uses: int) -> str:
    """The number of uses of the test patients, as a sentence."""
    words = {1: "once", 2: "twice"}.get(uses, f"{uses} times")
    return f"the test patients have been used {words}."
