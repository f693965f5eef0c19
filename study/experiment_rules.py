"""What an experiment's file must be beyond its types, and its faults in the user's words."""

import dataclasses
import difflib
import json
import re
from typing import Any

from pydantic import ValidationError

from study.errors import UsageError
from study.sections import Cluster, Confirm, Data, Experiment, Search, Training, Workers

_SECTIONS: dict[str, type] = {
    "data": Data,
    "search": Search,
    "training": Training,
    "confirm": Confirm,
    "workers": Workers,
    "cluster": Cluster,
}

# What a launch tells sbatch itself, or by another key of [cluster].
_OWN_OPTIONS = {
    "account", "array", "chdir", "comment", "constraint", "cpus-per-task", "error", "gpus-per-node", "job-name", "mem",
    "no-requeue", "nodes", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "signal", "time",
    "wrap",
}  # fmt: skip


def check_together(experiment: Experiment, source: str) -> None:
    """Raise UsageError where keys that are each valid contradict one another; source: the file's name."""
    search = experiment.search
    lists = {
        "labels": experiment.labels,
        "search.resolutions": search.resolutions,
        "search.learn_from": search.learn_from,
        "confirm.resolutions": experiment.confirm.resolutions or (),
    }
    for key, values in lists.items():
        repeated = sorted({str(value) for value in values if values.count(value) > 1})
        if repeated:
            raise UsageError(f"{source}: {key} has {', '.join(repeated)} more than once; name each once")
    for resolution in experiment.confirm.resolutions or ():
        if resolution not in search.resolutions:
            raise UsageError(
                f"{source}: confirm.resolutions has {resolution}, must be among search.resolutions: only what was "
                "searched has configurations to confirm"
            )
    if experiment.name in search.learn_from:
        raise UsageError(
            f"{source}: search.learn_from has {experiment.name}, this experiment's own name; its labels learn from one "
            "another anyway, so leave it out"
        )
    needed = len(search.resolutions) * search.min_complete_per_resolution
    if search.trials < needed:
        raise UsageError(
            f"{source}: search.trials is {search.trials}, must be at least {needed}: {len(search.resolutions)} "
            f"resolutions x min_complete_per_resolution = {search.min_complete_per_resolution}, equal effort for each"
        )
    if len(search.architectures) > search.min_complete_per_resolution:
        raise UsageError(
            f"{source}: search.architectures has {len(search.architectures)} networks, must be at most "
            f"min_complete_per_resolution = {search.min_complete_per_resolution}, for each label to try each"
        )
    low, high = search.learning_rate
    if not low < high:
        raise UsageError(f"{source}: search.learning_rate is [{low:g}, {high:g}], the first must be below the second")
    data = experiment.data
    if (data.train_val_list or data.test_list) and (data.paper_split or data.split_by == "image"):
        raise UsageError(
            f"{source}: data.{'paper_split' if data.paper_split else 'split_by'} and a published split "
            "(train_val_list, test_list) are both given; keep one of the two"
        )
    ages = data.ages
    if ages is not None and not ages[0] <= ages[1]:
        raise UsageError(f"{source}: data.ages is [{ages[0]:g}, {ages[1]:g}], the first must be at most the second")
    if search.min_batch_size > search.max_batch_size:
        raise UsageError(
            f"{source}: search.min_batch_size is {search.min_batch_size}, must be at most max_batch_size = "
            f"{search.max_batch_size}"
        )
    largest = search.max_batch_size // 8 * 8 or search.max_batch_size  # as a trial's feasible batch is rounded
    if isinstance(search.batch, int) and search.batch > largest:
        raise UsageError(
            f"{source}: search.batch is {search.batch}, must be at most {largest}: max_batch_size = "
            f"{search.max_batch_size}, down to a multiple of 8"
        )
    if search.seed < 0:
        raise UsageError(f"{source}: search.seed is {search.seed}, must be at least 0")
    workers = experiment.workers
    if workers.grace_s < 2 * workers.heartbeat_s:
        raise UsageError(
            f"{source}: workers.grace_s is {workers.grace_s}, must be at least {2 * workers.heartbeat_s}, twice "
            "heartbeat_s: a living worker would be taken for dead"
        )
    for option in experiment.cluster.extra:
        if option in _OWN_OPTIONS:
            raise UsageError(
                f"{source}: cluster.extra has {option}, which Acuity sets itself; the other keys of [cluster] say what "
                "may be chosen of it"
            )
        if not re.fullmatch(r"[a-z][a-z-]*", option):
            raise UsageError(
                f'{source}: cluster.extra has {shown(option)}, must be a long option of sbatch, such as "nodelist"'
            )
    if experiment.training.pretrained and experiment.training.weights is not None:
        raise UsageError(f"{source}: training.pretrained and training.weights are both given; keep one of the two")


def explain(error: ValidationError) -> str:
    """One fault of a pydantic report as 'key has VALUE, RULE': a misspelt key before the one that it leaves missing."""
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] in unknown), faults[0])
    location = [part for part in fault["loc"] if not _is_union_branch(part)]
    key = ".".join(str(part) for part in location if isinstance(part, str))
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind in unknown:
        near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(_known_keys(location[:-1]))}"
        return f"unknown key {key}{hint}"
    if kind in ("missing", "missing_argument") and isinstance(fault["loc"][-1], int):
        return f"{key} has too few values; it takes two, the lowest and the highest"
    if kind in ("missing", "missing_argument"):
        return f"{key} is missing (`acuity new FILE` shows every key)"
    if key.endswith("search.resolutions") and isinstance(given, int):
        return f"{key} has {given}, must be a multiple of 8 between 16 and 2048"
    if key == "search.batch":
        return f'{key} is {shown(given)}, must be "search", "largest" or a number from 2'
    if kind == "string_pattern_mismatch":
        a_name = key in ("name", "search.learn_from")
        allowed = "letters, digits, '.', '_' and '-' (64 at most)" if a_name else "1 to 128 characters without '/'"
        return f"{key} has {shown(given)}, must be {allowed}"
    if kind in ("too_short", "too_long"):
        return f"{key} has {shown(given)}, must be a list of at {'least' if kind == 'too_short' else 'most'} " + str(
            context["min_length" if kind == "too_short" else "max_length"]
        )
    if kind in ("tuple_type", "list_type"):
        return f"{key} has {shown(given)}, must be a list in [ ]"
    rule = str(context["error"]) if "error" in context else fault["msg"].removeprefix("Input should be ")
    return f"{key} has {shown(given)}, must be {rule[:1].lower()}{rule[1:]}"


def _is_union_branch(part: object) -> bool:
    """Pydantic puts the branch of a union, such as constrained-int or literal[...], into an error's location."""
    branches = ("int", "float", "constrained-int", "path", "str", "bool")
    return isinstance(part, str) and ("[" in part or part in branches)


def _known_keys(location: list[Any]) -> list[str]:
    table: Any = Experiment
    for part in location:
        table = _SECTIONS.get(str(part), table)
    return [known.name for known in dataclasses.fields(table)]


def shown(value: object) -> str:
    """A value as JSON, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
