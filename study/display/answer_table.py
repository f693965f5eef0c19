"""Terminal tables of the best configurations, the AUC at each resolution and the results of the confirmation."""

from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from acuity.study.display.plain_table import plain_table
from acuity.study.results.answer import Answer, LabelAnswer, ResolutionAnswer
from acuity.study.units import counted, escape_markdown, format_duration, format_times, signed


def answer_table(answer: Answer) -> Group:
    """The warnings, one row per label with its best configuration, the AUC at each resolution, and the verdicts."""
    best = plain_table(
        "label", _resolution_heading(answer), "AUC", "architecture", "batch/\nfeasible", "learning\nrate",
        "trials\n(pruned)", text=("architecture",),
    )  # fmt: skip
    for entry in answer.labels:
        best.add_row(*_best_row(entry))
    return Group(*_warnings(answer), best, Text(), _by_resolution_table(answer), Text(), *_notes(answer))


def auc_table(answer: Answer) -> Group:
    """The AUC at each resolution and the number of trials behind it, one row per label and resolution."""
    table = plain_table("label", "px", "AUC (95 %)", "trials\n(pruned)", "networks")
    for entry in answer.labels:
        for at in entry.by_resolution:
            trials = f"{at.complete + at.pruned} ({at.pruned})"
            table.add_row(Text(entry.label), str(at.resolution), _auc_with_interval(at), trials, str(at.seeds or "-"))
    return Group(*_warnings(answer), table, Text(), *_notes(answer))


def trials_table(trials: pd.DataFrame) -> Table:
    """One row per trial with its main columns, from `read_trials`."""
    table = plain_table(
        "label", "trial", "state", "px", "architecture", "batch", "learning\nrate", "epochs", "AUC", "time", "reason",
        text=("state", "architecture", "reason"),
    )  # fmt: skip
    for row in trials.to_dict("records"):
        state = "requeued" if row["requeued"] else str(row["state"]).lower()
        table.add_row(
            Text(f"{row['label']}{' (confirm)' if row['confirm'] else ''}"),
            str(row["number"]),
            state,
            _shown(row["resolution"], ".0f"),
            Text("" if pd.isna(row["architecture"]) else row["architecture"]),
            _shown(row["batch_size"], ".0f"),
            _shown(row["learning_rate"], ".2g"),
            _shown(row["epochs"], ".0f"),
            _shown(row["value"], ".3f"),
            "" if pd.isna(row["seconds"]) else format_duration(row["seconds"]),
            Text("" if pd.isna(row["reason"]) else row["reason"]),
        )
    return table


def details_table(entry: LabelAnswer) -> Group:
    """All results of a label's confirmation: differences between resolutions, metrics at each, subgroups."""
    found = entry.confirmation
    if found is None:
        return Group(Text(f"{entry.label} is not confirmed yet. `acuity confirm` confirms it."))
    return Group(
        Text(),
        _differences_table(found),
        Text(f"Not shown worse than any other: {', '.join(f'{each} px' for each in found['not_worse'])}."),
        Text(),
        _metrics_table(found),
        *_ratio(found["ratio"]),
        Text(),
        _subgroups_table(found),
        Text(
            f"{found['images']:,} test images of {found['patients']:,} patients, {found['positive_patients']:,} "
            f"with the finding. Standard error over patients: {found['check']['patient_se']:.4f} by formula, "
            f"{found['check']['patient_se_bootstrap']:.4f} by bootstrap over patients. All results are conditional on "
            "the training patients.",
            style="italic",
        ),
    )


def external_table(results: list[dict[str, Any]]) -> Group:
    """Results on an external image set: one row per label and resolution, then each label's sentence."""
    table = plain_table("label", "px", "AUC (95 %)", "accuracy at\nYouden", "AUPRC", "patients\n(positive)")
    for found in results:
        for each in found["by_resolution"]:
            table.add_row(
                Text(found["label"]),
                str(each["resolution"]),
                f"{each['auc']:.3f} ({each['auc_low']:.2f}–{each['auc_high']:.2f})",
                f"{each['accuracy']['mean']:.3f}",
                f"{each['average_precision']['mean']:.3f}",
                f"{found['patients']:,} ({found['positive_patients']:,})",
            )
    note = "Reference, margin and thresholds are those of the confirmation. Nothing was chosen on these patients."
    sentences = [Text(found["smallest_adequate"]["sentence"]) for found in results]
    return Group(table, Text(), *sentences, Text(), Text(note, style="italic"))


def markdown_table(table: pd.DataFrame) -> str:
    """The table in Markdown; numbers are rounded to 4 digits, missing values are empty."""
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape_markdown(value)


def _resolution_heading(answer: Answer) -> str:
    """The confirmed resolution of a label is its reference, which validation patients named. It is not the verdict."""
    splits = {entry.best.split for entry in answer.labels if entry.best is not None}
    return {frozenset({"test"}): "reference px", frozenset({"test", "validation"}): "best px,\n* reference"}.get(
        frozenset(splits), "best px"
    )


def _warnings(answer: Answer) -> list[RenderableType]:
    """What a reader must know before the results."""
    texts = (*answer.warnings, *(warning for entry in answer.labels for warning in entry.warnings))
    return [*(Text(text, style="bold") for text in texts), Text()] if texts else []


def _by_resolution_table(answer: Answer) -> Table:
    resolutions = [at.resolution for at in answer.labels[0].by_resolution]
    table = plain_table("AUC (95 %) at", *(f"{resolution} px" for resolution in resolutions))
    for entry in answer.labels:
        table.add_row(Text(entry.label), *map(_auc_with_interval, entry.by_resolution))
    return table


def _shown(value: float | None, form: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, form)


def _best_row(entry: LabelAnswer) -> list[Text | str]:
    complete, pruned = entry.trials["complete"], entry.trials["pruned"]
    trials = f"{complete + pruned} ({pruned})"
    if entry.best is None:
        return [Text(entry.label), "-", "-", "no complete trial yet", "", "", trials]
    best = entry.best
    return [
        Text(entry.label),
        str(best.resolution),
        f"{best.auc:.3f}{'*' if best.split == 'test' else ''}",
        best.architecture,
        f"{best.batch_size}/{best.feasible_batch_size}",
        f"{best.learning_rate:.2g}",
        trials,
    ]


def _auc_with_interval(at: ResolutionAnswer) -> str:
    if at.auc is None or at.auc_low is None or at.auc_high is None:
        return "-"
    mark = "*" if at.split == "test" else ""
    return f"{at.auc:.3f}{mark} ({at.auc_low:.2f}–{at.auc_high:.2f})"


def _notes(answer: Answer) -> list[RenderableType]:
    confirmed = [entry for entry in answer.labels if entry.smallest_adequate is not None]
    notes: list[RenderableType] = [Text(str((entry.smallest_adequate or {})["sentence"])) for entry in confirmed]
    if confirmed:
        uses = f"the test patients have been used {format_times(answer.test_uses)}."
        notes += [Text(), Text(f"* on test patients ({_designs(confirmed)}), mean of the networks; {uses}", "italic")]
    if any(at.split == "validation" for entry in answer.labels for at in entry.by_resolution):
        words = "AUC of the best trial on the validation patients that chose it: optimistic, and no verdict."
        notes.append(Text(f"Without *: {words}" if confirmed else words, style="italic"))
    counts = {entry.label: entry.trials["complete"] + entry.trials["pruned"] for entry in answer.labels}
    budget = counted(answer.trials, "trial")
    unfinished = [f"{label} has {count} of {budget}" for label, count in counts.items() if count < answer.trials]
    if unfinished:
        notes.append(Text(f"The search is not finished ({'; '.join(unfinished)}).", style="italic"))
    return notes


def _designs(confirmed: list[LabelAnswer]) -> str:
    """How the labels' test patients were tested: one confirmation has one design."""
    found = [entry.confirmation or {} for entry in confirmed]
    folds = found[0]["design"]["folds"]
    if folds is None:
        return "held-out"
    trained = sorted({at["seeds"] for each in found for at in each["by_resolution"]})
    if trained == [folds]:
        return f"cross-fitted: all patients outside validation, in {folds} folds"
    numbers = str(trained[0]) if len(trained) == 1 else f"{trained[0]} to {trained[-1]}"
    return f"cross-fitted: {numbers} of {folds} folds of the patients outside validation"


def _differences_table(found: dict[str, Any]) -> Table:
    trials = {each["resolution"]: each["trials"] for each in found["by_resolution"]}
    table = plain_table("difference", "AUC", "95 %", "p", "p (Holm)", "trials\nbehind them")
    for each in found["comparisons"]:
        table.add_row(
            f"{each['resolution']} px less {each['reference']} px",
            signed(each["difference"]),
            f"{signed(each['difference_low'])} to {signed(each['difference_high'])}",
            f"{each['p_value']:.2g}",
            f"{each['p_value_holm']:.2g}",
            f"{trials[each['resolution']]}, {trials[each['reference']]}",
        )
    return table


def _metrics_table(found: dict[str, Any]) -> Table:
    """The metrics that Sabottke & Spieler report, and the Brier score."""
    headings = ("AUC", "SD over\nseeds", "accuracy at\nYouden", "AUPRC", "sensitivity at\n90 % specificity")
    table = plain_table("px", *headings, "Brier\n(validation)", "trials\nsearched")
    keys = ("accuracy", "average_precision", "sensitivity_at_90_specificity", "validation_brier")
    for each in found["by_resolution"]:
        metrics = (f"{each[key]['mean']:.3f} ± {each[key]['sd']:.3f}" for key in keys)
        table.add_row(
            str(each["resolution"]), f"{each['auc']:.3f}", f"{each['seed_sd']:.3f}", *metrics, str(each["trials"])
        )
    return table


def _ratio(ratio: dict[str, Any] | None) -> list[RenderableType]:
    if ratio is None:
        return []
    pair = f"{ratio['resolution']} px to {ratio['reference']} px"
    return [Text(f"Ratio of AUCs, {pair}: {100 * ratio['ratio']:.1f} % ± {100 * ratio['seed_sd']:.1f} SD over seeds.")]


def _subgroups_table(found: dict[str, Any]) -> Table:
    resolutions = [each["resolution"] for each in found["by_resolution"]]
    table = plain_table("AUC (95 %) of", "positive\npatients", *(f"{resolution} px" for resolution in resolutions))
    rows: dict[tuple[str, str], list[str]] = {}
    for each in found["subgroups"]:
        interval = (
            "too few" if each["auc"] is None else f"{each['auc']:.3f} ({each['auc_low']:.2f}–{each['auc_high']:.2f})"
        )
        rows.setdefault((each["by"], each["group"]), [str(each["positive_patients"])]).append(interval)
    for (by, group), cells in rows.items():
        table.add_row(Text(f"{by.replace('_', ' ')} {group}"), *cells)
    return table
