"""experiment.toml -> one frozen Experiment, checked once at the door."""

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from study.errors import UsageError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Label = Annotated[str, Field(pattern=r"^[^/\x00-\x1f]{1,128}$")]
Resolution = Annotated[int, Field(ge=16, le=2048, multiple_of=8)]
PositiveInt = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Age = Annotated[float, Field(ge=0, le=120)]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Data:
    """Where the image set lies and which of its images count; relative paths start at the experiment file's folder."""

    __pydantic_config__ = _STRICT
    index: Path
    images: Path
    split: Path | None = None
    """The table patient -> part; by default beside the index."""
    cache: Path | None = None
    """Where each resolution's array is kept; by default the user's cache folder."""
    format: Literal["nih", "chexpert", "padchest", "table"] | None = None
    """By default told by the index's columns."""
    train_val_list: Path | None = None
    """A published split: a list of images whose patients are cut into training and validation."""
    test_list: Path | None = None
    """A published split: a list of the test images."""
    split_by: Literal["patient", "image"] = "patient"
    """By image is for comparison with studies that did so: patients of one part are then in the others too."""
    paper_split: bool = False
    """80 % training, 20 % validation and no test patients, as Sabottke & Spieler: nothing can be confirmed."""
    uncertain: Literal["positive", "negative", "leave_out"] = "leave_out"
    """What -1 means in a label's column."""
    blank: Literal["negative", "leave_out"] = "leave_out"
    """What an empty cell means in a label's column."""
    views: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    ages: tuple[Age, Age] | None = None
    """Years, both ends included."""
    no_finding: Literal["keep", "leave_out", "only_negatives"] = "keep"
    """Images that are known to show nothing: negatives like others, none at all, or the only negatives."""
    one_image_per_patient: bool = False
    fit: Literal["pad", "stretch"] = "pad"
    """What becomes of images that are not square."""
    on_bad_image: Literal["refuse", "drop"] = "refuse"
    """Whether images that cannot be read stop the experiment or are left out of it."""


@dataclass(frozen=True)
class Search:
    """What is searched, and with how many trials."""

    __pydantic_config__ = _STRICT
    resolutions: Annotated[tuple[Resolution, ...], Field(min_length=1)]
    architectures: Annotated[tuple[str, ...], Field(min_length=1)]
    trials: PositiveInt
    """Finished trials (complete and pruned) for each label."""
    min_complete_per_resolution: PositiveInt = 6
    learning_rate: tuple[Rate, Rate] = (1e-4, 1e-2)
    """Range at the reference batch of 128."""
    batch: Literal["search", "largest"] | Annotated[int, Field(ge=2)] = "search"
    min_batch_size: Annotated[int, Field(ge=2)] = 16
    max_batch_size: Annotated[int, Field(ge=2)] = 1024
    min_updates_per_epoch: PositiveInt = 20
    pruner: Literal["median", "none"] = "median"
    seed: int = 0


@dataclass(frozen=True)
class Training:
    """How every trial's network is trained."""

    __pydantic_config__ = _STRICT
    epochs: PositiveInt
    pretrained: bool = False
    weights: Path | None = None
    network_input: Resolution | None = None
    """Enlarge every resolution to this input size, to separate lost information from lost geometry."""
    precision: Literal["fp32", "bf16"] = "fp32"
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    augment: bool = True


@dataclass(frozen=True)
class Confirm:
    """What is confirmed on the test patients; may change under the same name."""

    __pydantic_config__ = _STRICT
    resolutions: Annotated[tuple[Resolution, ...], Field(min_length=1)] | None = None
    """By default those within 0.05 AUC of the search's best, and the smallest."""
    margin: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """AUC by which a resolution may fall short of the reference and still be adequate."""
    seeds: Annotated[int, Field(ge=3)] = 5
    """Trainings of each finalist; its spread is part of every interval."""


@dataclass(frozen=True)
class Workers:
    """What the workers may use and how patient they are; may change under the same name."""

    __pydantic_config__ = _STRICT
    memory_budget_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of one worker's training step; by default a share of the device's or the host's."""
    max_retries: Annotated[int, Field(ge=0)] = 5
    """How often a trial whose worker died is taken up again."""
    storage_patience_min: Annotated[float, Field(gt=0)] = 30.0
    heartbeat_s: PositiveInt = 30
    grace_s: PositiveInt = 180
    """A running trial without a sign of life for this long is taken up by another worker."""
    checkpoints: str | None = None
    """Folder that all workers see, or any address that fsspec knows; by default beside the image cache."""


@dataclass(frozen=True)
class Cluster:
    """What `--cluster slurm` asks of Slurm for each worker; may change under the same name."""

    __pydantic_config__ = _STRICT
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that a node must have, such as "a100"."""
    time_limit_min: PositiveInt = 240
    """Of one run of a job; one that reaches it is requeued while there is work to do."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 1
    cpus_per_worker: PositiveInt = 4
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Of the node's memory, for each worker; by default the partition's own."""
    max_requeues: Annotated[int, Field(ge=0)] = 20
    """How often a worker that is preempted or out of time puts its job back into the queue."""
    logs: Path | None = None
    """Folder that all nodes see; by default the user's own log folder."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the worker, such as module load."""
    extra: dict[str, str | int | bool] = field(default_factory=dict)
    """Any other option of sbatch, by its long name."""


@dataclass(frozen=True)
class Experiment:
    """A named set of studies, one per label, over one image set."""

    __pydantic_config__ = _STRICT
    name: Name
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    data: Data
    search: Search
    training: Training
    confirm: Confirm = field(default_factory=Confirm)
    workers: Workers = field(default_factory=Workers)
    cluster: Cluster = field(default_factory=Cluster)


_ADAPTER = TypeAdapter(Experiment)

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

# These may change under an old name: they say how much and where, never what a trial means.
_FREE = (
    "data.index",
    "data.images",
    "data.format",
    "data.split",
    "data.train_val_list",
    "data.test_list",
    "data.cache",
    "search.trials",
    "training.weights",
    "confirm.",
    "workers.",
    "cluster.",
)


def load(path: Path) -> Experiment:
    """Read and check an experiment file. UsageError names the file, the key, the value and the rule."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror or error}. `acuity new {path}` writes a template to start from"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path}: is not UTF-8 text; an experiment file is TOML (`acuity new FILE` shows one)"
        ) from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: is not valid TOML: {error}") from None
    return resolve_paths(parse(table, source=str(path)), path.resolve().parent)


def parse(table: dict[str, Any], *, source: str) -> Experiment:
    """Check a table as read from TOML or from the database. Paths stay as written."""
    try:
        # Through JSON, since strict mode there takes lists for tuples and strings for paths, and nothing else.
        experiment = _ADAPTER.validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise UsageError(f"{source}: {_explain(error)}") from None
    _check_together(experiment, source)
    return experiment


def to_table(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON's types, for the database; `parse` reads it back."""
    table: dict[str, Any] = _ADAPTER.dump_python(experiment, mode="json")
    return table


def resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Make every relative path start at folder."""
    return _map_paths(experiment, lambda path: folder / path.expanduser())


def move_paths(experiment: Experiment, folder: Path) -> Experiment:
    """The same experiment where the index's folder, with what lies in it, is at another place: on another host."""
    old = experiment.data.index.parent
    return _map_paths(experiment, lambda path: folder / path.relative_to(old) if path.is_relative_to(old) else path)


def _map_paths(experiment: Experiment, function: Callable[[Path], Path]) -> Experiment:
    def mapped(section: Any) -> Any:
        paths = {known.name: getattr(section, known.name) for known in dataclasses.fields(section)}
        return dataclasses.replace(
            section, **{name: function(path) for name, path in paths.items() if isinstance(path, Path)}
        )

    workers, at = experiment.workers, experiment.workers.checkpoints
    if at is not None and "://" not in at:
        workers = dataclasses.replace(workers, checkpoints=str(function(Path(at))))
    return dataclasses.replace(
        experiment,
        data=mapped(experiment.data),
        training=mapped(experiment.training),
        workers=workers,
        cluster=mapped(experiment.cluster),
    )


def changes_of_meaning(old: Experiment, new: Experiment) -> list[str]:
    """What differs between two experiments of one name that would change what a trial means: 'key: old -> new'."""
    before, after = _flatten(to_table(old)), _flatten(to_table(new))
    if set(old.labels) <= set(new.labels):
        # Another label is another study; it changes nothing of the trials that there are.
        before["labels"] = after["labels"]
    return [
        f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_FREE)
    ]


def split_path(experiment: Experiment) -> Path:
    """Where the split is kept: as the file says, else beside the index and shared by every experiment on it."""
    data = experiment.data
    kind = ".published" if data.train_val_list or data.test_list else ""
    kind += ".by-image" if data.split_by == "image" else ""
    kind += ".paper" if data.paper_split else ""
    return data.split or data.index.with_name(f"{data.index.name.split('.')[0]}{kind}.split.csv")


def cache_folder(experiment: Experiment, sha256: str) -> Path:
    """Where the arrays of these images are kept: experiments on the same ones share them."""
    return experiment.data.cache or Path(platformdirs.user_cache_dir("acuity")) / sha256[:16]


def _check_together(experiment: Experiment, source: str) -> None:
    search = experiment.search
    lists = {
        "labels": experiment.labels,
        "search.resolutions": search.resolutions,
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
    needed = len(search.resolutions) * search.min_complete_per_resolution
    if search.trials < needed:
        raise UsageError(
            f"{source}: search.trials is {search.trials}, must be at least {needed}: {len(search.resolutions)} "
            f"resolutions x min_complete_per_resolution = {search.min_complete_per_resolution}, equal effort for each"
        )
    if len(search.architectures) > search.min_complete_per_resolution:
        raise UsageError(
            f"{source}: search.architectures has {len(search.architectures)} networks, must be at most "
            f"min_complete_per_resolution = {search.min_complete_per_resolution}, to try each at each resolution"
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
    for option in experiment.cluster.extra:
        if option in _OWN_OPTIONS:
            raise UsageError(
                f"{source}: cluster.extra has {option}, which Acuity sets itself; the other keys of [cluster] say what "
                "may be chosen of it"
            )
        if not re.fullmatch(r"[a-z][a-z-]*", option):
            raise UsageError(
                f'{source}: cluster.extra has {_shown(option)}, must be a long option of sbatch, such as "nodelist"'
            )
    if experiment.training.pretrained and experiment.training.weights is not None:
        raise UsageError(f"{source}: training.pretrained and training.weights are both given; keep one of the two")


def _explain(error: ValidationError) -> str:
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
        return f'{key} is {_shown(given)}, must be "search", "largest" or a number from 2'
    if kind == "string_pattern_mismatch":
        allowed = {"name": "letters, digits, '.', '_' and '-' (64 at most)"}.get(key, "1 to 128 characters without '/'")
        return f"{key} has {_shown(given)}, must be {allowed}"
    if kind in ("too_short", "too_long"):
        return f"{key} has {_shown(given)}, must be a list of at {'least' if kind == 'too_short' else 'most'} " + str(
            context["min_length" if kind == "too_short" else "max_length"]
        )
    if kind in ("tuple_type", "list_type"):
        return f"{key} has {_shown(given)}, must be a list in [ ]"
    rule = str(context["error"]) if "error" in context else fault["msg"].removeprefix("Input should be ")
    return f"{key} has {_shown(given)}, must be {rule[:1].lower()}{rule[1:]}"


def _is_union_branch(part: object) -> bool:
    """Pydantic puts the branch of a union, such as constrained-int or literal[...], into an error's location."""
    branches = ("int", "float", "constrained-int", "path", "str", "bool")
    return isinstance(part, str) and ("[" in part or part in branches)


def _known_keys(location: list[Any]) -> list[str]:
    table: Any = Experiment
    for part in location:
        table = _SECTIONS.get(str(part), table)
    return [known.name for known in dataclasses.fields(table)]


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
