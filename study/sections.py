"""The sections of an experiment's file: every key, its type and its default."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

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
    min_complete_per_resolution: PositiveInt = 3
    learning_rate: tuple[Rate, Rate] = (1e-4, 1e-2)
    """Range at the reference batch of 128."""
    batch: Literal["search", "largest"] | Annotated[int, Field(ge=2)] = "search"
    min_batch_size: Annotated[int, Field(ge=2)] = 16
    max_batch_size: Annotated[int, Field(ge=2)] = 1024
    min_updates_per_epoch: PositiveInt = 20
    pruner: Literal["median", "none"] = "median"
    seed: int = 0
    learn_from: tuple[Name, ...] = ()
    """Experiments of the same storage whose trials say which recipes are tried first."""


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
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
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
    memory_budget_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Memory of one worker's training step; by default a share of the device's or the host's."""
    max_retries: Annotated[int, Field(ge=0)] = 5
    """How often a trial whose worker died is taken up again."""
    storage_patience_min: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
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
    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
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
