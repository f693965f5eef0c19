"""The note that optuna-dashboard shows for a label, in Markdown."""

import shlex

from acuity.study.config.caveats import caveats
from acuity.study.registry.names import confirm_study_name, study_name
from acuity.study.registry.record import Registered
from acuity.study.results.answer import LabelAnswer, ResolutionAnswer
from acuity.study.units import code, counted, escape_markdown

_MARK = "*Acuity writes this note after trials, at most once a minute. If you replace it, Acuity keeps your text.*"


def note_text(registered: Registered, entry: LabelAnswer, studies: dict[str, int], *, confirms: bool = False) -> str:
    """The result of a label in a sentence, a table and links. studies: ids of the studies to link, by name."""
    experiment = registered.experiment
    heading = f"# {escape_markdown(entry.label)}" + (": confirmation" if confirms else "")
    rows = [
        "| px | AUC (95 %) | of | trials (pruned) |",
        "| ---: | :--- | :--- | ---: |",
        *map(_row, entry.by_resolution),
    ]
    others = [
        f"[{escape_markdown(each)}](/dashboard/studies/{studies[study_name(experiment.name, each)]})"
        for each in experiment.labels
        if study_name(experiment.name, each) in studies and (confirms or each != entry.label)
    ]
    confirmation = studies.get(confirm_study_name(experiment.name, entry.label))
    links = [f"Searches of the labels: {', '.join(others)}."] if others else []
    if confirmation is not None and not confirms:
        links.append(f"Its [confirmation](/dashboard/studies/{confirmation}).")
    best = f"acuity best {experiment.name} --label {shlex.quote(entry.label)}"
    commands = f"{code(best)}, `acuity report {experiment.name} --out report`"
    return "\n\n".join(
        [
            heading,
            *map("**{}**".format, (*caveats(experiment), *map(escape_markdown, entry.warnings))),
            _sentence(registered, entry),
            "\n".join(rows),
            " ".join([*links, f"More: {commands}."]),
            _MARK,
        ]
    )


def is_written_by_acuity(note: str) -> bool:
    """Whether the note is ours. A person's note must be kept."""
    return _MARK in note


def _sentence(registered: Registered, entry: LabelAnswer) -> str:
    finished = entry.trials["complete"] + entry.trials["pruned"]
    done = f"{finished} of {counted(registered.experiment.search.trials, 'trial')}"
    if entry.smallest_adequate is not None:
        return f"**{escape_markdown(entry.smallest_adequate['sentence'])}** ({done})"
    if entry.best is None:
        return f"No complete trial yet ({done})."
    best = entry.best
    return (
        f"**Best so far: {best.resolution} px, AUC {best.auc:.3f} ({best.auc_low:.3f} to {best.auc_high:.3f})**, "
        f"{best.architecture}, batch {best.batch_size} of {best.feasible_batch_size} feasible; {done}. The "
        "AUC is of the validation patients that chose it: optimistic, no verdict. `acuity confirm "
        f"{registered.experiment.name}` gives one."
    )


def _row(at: ResolutionAnswer) -> str:
    auc = "–" if at.auc is None else f"{at.auc:.3f} ({at.auc_low:.3f} to {at.auc_high:.3f})"
    of = f"test patients, {at.seeds} networks" if at.split == "test" else "validation patients"
    return f"| {at.resolution} | {auc} | {of} | {at.complete + at.pruned} ({at.pruned}) |"
