"""The experiment file: every key, its type, its default and its rules."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from acuity.objectives.tables.column_mapping import ColumnMapping, FormatName
from acuity.study.config.faults import Faults
from acuity.study.config.value_types import (
    Age,
    Architecture,
    BatchChoice,
    BatchSize,
    FunctionName,
    Gibibytes,
    Label,
    Minutes,
    Name,
    OptionValue,
    PositiveFloat,
    PositiveInt,
    Rate,
    Resolution,
    Rule,
    Seconds,
    Seed,
    WandbProject,
)

_STRICT = ConfigDict(extra="forbid")
MAX_FOLDS = 20
"""Largest number of folds of a cross-fitted confirmation."""
# Acuity sets these options of sbatch itself, or another key of [cluster] does.
_RESERVED_OPTIONS = {
    "account", "array", "chdir", "comment", "constraint", "cpus-per-task", "error", "gpus-per-node", "job-name", "mem",
    "no-requeue", "nodes", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "signal", "time",
    "wrap",
}  # fmt: skip


@dataclass(frozen=True)
class Columns(ColumnMapping):
    """The columns of an index of no known format, or columns in place of those of the format."""

    __pydantic_config__ = _STRICT
    labels: Annotated[
        str | tuple[str, ...] | dict[str, str] | None, Rule("a column, a list of columns, or a table label -> column")
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = Faults()
        with faults:
            if self.labels is not None and self.findings is not None:
                raise ValueError("data.columns.labels and data.columns.findings are both given; keep one of the two")
        with faults:
            if self.separator is not None and self.findings is None:
                raise ValueError(
                    "data.columns.separator is given without data.columns.findings; add it, or leave out separator"
                )
        with faults:
            if self.reader is not None and self.rows_per_image is None:
                raise ValueError(
                    "data.columns.reader is given without data.columns.rows_per_image; set rows_per_image to "
                    '"any", "majority" or "all" (the readers that make an image positive), or leave out reader'
                )
        faults.report()
        return self


@dataclass(frozen=True)
class Data:
    """The image set and the images that are used. Relative paths start at the experiment file's folder."""

    __pydantic_config__ = _STRICT
    index: Path
    """The table of the images: a published one, or one of yours, as CSV or Parquet."""
    images: Path
    """The folder of the image files. File names in the table are relative to it."""
    split: Path | None = None
    """The file of the split, with the part of each patient. The default is a file beside the index."""
    cache: Path | None = None
    """Folder of the decoded images. The default is a folder in ~/.cache/acuity."""
    format: FormatName | None = None
    """Format of the index. By default Acuity recognises it by the columns."""
    columns: Columns | None = None
    """Columns of a table in no known format, such as { file = "{id}.png", patient = "subject" }."""
    train_val_list: Path | None = None
    """A published split: the list of images of the training and validation patients."""
    test_list: Path | None = None
    """A published split: the list of test images."""
    split_by: Literal["patient", "image"] = "patient"
    """"image" is only for comparison with studies that split by image: a patient is then in several parts."""
    paper_split: bool = False
    """80 % training, 20 % validation and no test patients, as in Sabottke & Spieler. Nothing can be confirmed."""
    uncertain: Literal["positive", "negative", "leave_out"] = "leave_out"
    """Meaning of -1 in a label's column. "leave_out" leaves the image out of this label only."""
    blank: Literal["negative", "leave_out"] = "leave_out"
    """Meaning of an empty cell in a label's column. "leave_out" leaves the image out of this label only."""
    views: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Use only images of these views, named as in the index. The default is every view."""
    ages: tuple[Age, Age] | None = None
    """Lowest and highest age in years, both included."""
    no_finding: Literal["keep", "leave_out", "only_negatives"] = "keep"
    """Images without any finding: keep them as negatives, leave them out, or use them as the only negatives."""
    one_image_per_patient: bool = False
    """Use only the first image of each patient that passes the other filters."""
    fit: Literal["pad", "stretch"] = "pad"
    """How an image that is not square becomes square: with black bands, or stretched."""
    on_bad_image: Literal["refuse", "drop"] = "refuse"
    """Bad images stop the experiment ("refuse") or are left out ("drop")."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = Faults()
        with faults:
            if (self.train_val_list or self.test_list) and (self.paper_split or self.split_by == "image"):
                raise ValueError(
                    f"data.{'paper_split' if self.paper_split else 'split_by'} and a published split "
                    "(train_val_list, test_list) are both given; keep one of the two"
                )
        with faults:
            if self.ages is not None and not self.ages[0] <= self.ages[1]:
                low, high = self.ages
                raise ValueError(f"data.ages is [{low:g}, {high:g}], the first must be at most the second")
        faults.report()
        return self


@dataclass(frozen=True)
class Search:
    """The search space and the number of trials."""

    __pydantic_config__ = _STRICT
    resolutions: Annotated[tuple[Resolution, ...], Field(min_length=1)]
    """Side of the images in px, at most the size of the images' files."""
    architectures: Annotated[tuple[Architecture, ...], Field(min_length=1)]
    """The networks: timm's names, names with arguments ("name?key=value"), or functions ("module:function")."""
    trials: PositiveInt
    """Finished trials (complete and pruned) per label."""
    min_complete_per_resolution: PositiveInt = 3
    """Complete trials at each resolution before the sampler chooses."""
    learning_rate: tuple[Rate, Rate] = (1e-4, 1e-2)
    """Range at a batch size of 128. A trial multiplies it by the square root of its batch size / 128."""
    batch: BatchChoice = "search"
    """Search the batch size, use the largest feasible one, or use a fixed one."""
    min_batch_size: BatchSize = 16
    """Lower limit of the searched batch sizes."""
    max_batch_size: BatchSize = 1024
    """Upper limit of every batch size."""
    min_updates_per_epoch: PositiveInt = 20
    """Smallest number of optimiser steps per epoch. It limits the batch size of a small training part."""
    pruner: Literal["median", "none"] = "median"
    """Stop a trial whose validation AUC is below the median of the other trials after the same epoch."""
    seed: Seed = 0
    """Seed of the initial recipes and of each trial's training. It does not fix the sampler: two searches differ."""
    learn_from: tuple[Name, ...] = ()
    """Experiments in the same storage. Their best configurations are tried first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = Faults()
        with faults:
            _require_unique("search.resolutions", self.resolutions)
        with faults:
            _require_unique("search.learn_from", self.learn_from)
        with faults:
            needed = len(self.resolutions) * self.min_complete_per_resolution
            if self.trials < needed:
                raise ValueError(
                    f"search.trials is {self.trials}, must be at least {needed}: {len(self.resolutions)} resolutions x "
                    f"min_complete_per_resolution = {self.min_complete_per_resolution}, equal effort for each"
                )
        with faults:
            if len(self.architectures) > self.min_complete_per_resolution:
                raise ValueError(
                    f"search.architectures has {len(self.architectures)} networks, must be at most "
                    f"min_complete_per_resolution = {self.min_complete_per_resolution}, so that each label tries them "
                    "all"
                )
        with faults:
            low, high = self.learning_rate
            if not low < high:
                raise ValueError(f"search.learning_rate is [{low:g}, {high:g}], the first must be below the second")
        with faults:
            if self.min_batch_size > self.max_batch_size:
                raise ValueError(
                    f"search.min_batch_size is {self.min_batch_size}, must be at most max_batch_size = "
                    f"{self.max_batch_size}"
                )
        with faults:
            # A feasible batch size is rounded down to a multiple of 8.
            largest = self.max_batch_size // 8 * 8 or self.max_batch_size
            if isinstance(self.batch, int) and self.batch > largest:
                raise ValueError(
                    f"search.batch is {self.batch}, must be at most {largest}: max_batch_size = {self.max_batch_size}, "
                    "down to a multiple of 8"
                )
        faults.report()
        return self


@dataclass(frozen=True)
class Training:
    """Training of the network in every trial."""

    __pydantic_config__ = _STRICT
    epochs: PositiveInt
    """Epochs of every trial."""
    pretrained: bool = False
    """Start from timm's weights. They are downloaded once."""
    weights: Path | None = None
    """Start from the weights in this file, as safetensors or a PyTorch state dict."""
    network_input: Resolution | None = None
    """Enlarge images of every resolution to this input size in px. Then only their detail differs, not their size."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of a training step. tf32 and bf16 need a GPU of compute capability 8 or higher."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    """Weight decay of AdamW."""
    augment: bool = True
    """Shift, rotate, zoom and change contrast at random, without mirroring. This blurs textures of 2 to 3 px."""
    augmentation: FunctionName | None = None
    """A function of your own, as "module:function", in place of the built-in augmentation."""
    loss: FunctionName | None = None
    """A function of your own, as "module:function", in place of the weighted cross entropy."""
    train: FunctionName | None = None
    """A function of your own, as "module:function", in place of all training steps of a trial."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = Faults()
        with faults:
            if self.pretrained and self.weights is not None:
                raise ValueError("training.pretrained and training.weights are both given; keep one of the two")
        with faults:
            if self.augmentation is not None and not self.augment:
                raise ValueError(
                    "training.augmentation and training.augment = false are both given; keep one of the two"
                )
        for key, is_given in (
            ("augmentation", self.augmentation is not None),
            ("loss", self.loss is not None),
            ("augment = false", not self.augment),
        ):
            with faults:
                if self.train is not None and is_given:
                    raise ValueError(
                        f"training.train and training.{key} are both given; keep one of the two: the function of "
                        "training.train decides augmentation and loss itself"
                    )
        faults.report()
        return self


@dataclass(frozen=True)
class Confirm:
    """The confirmation on the test patients. These keys may change under the same name."""

    __pydantic_config__ = _STRICT
    resolutions: Annotated[tuple[Resolution, ...], Field(min_length=1)] | None = None
    """Resolutions to confirm. By default the smallest, the largest, and all that are not clearly more than 0.05 AUC
    below the search's best."""
    margin: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """Non-inferiority margin: the AUC that an adequate resolution may lose against a larger one."""
    design: Literal["cross-fitted", "held-out"] | None = None
    """"cross-fitted": the patients outside validation are test patients of networks that were trained without them.
    "held-out": the test part alone. The default is "held-out" with a published split or a split by image, else
    "cross-fitted"."""
    folds: Annotated[int, Field(ge=3, le=MAX_FOLDS)] = 4
    """Number of folds of a cross-fitted confirmation. Each finalist is trained at most once for each fold."""
    min_folds: Annotated[int, Field(ge=2)] = 3
    """Number of folds that are trained at least. The others follow one after another. Training ends once an equally
    good resolution would be shown with 80 % power."""
    seeds: Annotated[int, Field(ge=3)] = 5
    """Trainings per finalist of a held-out confirmation. Their spread is part of every confidence interval."""
    nominees: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of configurations of each resolution that are retrained. The best of them is the finalist."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require_unique("confirm.resolutions", self.resolutions or ())
        if self.min_folds > self.folds:
            raise ValueError(
                f"confirm.min_folds is {self.min_folds}, must be at most {self.folds}, the number of folds: lower it, "
                "or raise confirm.folds"
            )
        return self


@dataclass(frozen=True)
class Workers:
    """Limits of the workers. These keys may change under the same name."""

    __pydantic_config__ = _STRICT
    memory_budget_gib: Gibibytes | None = None
    """Memory for one worker's training step, in GiB. The default is a share of the device's or the host's memory."""
    capture_steps: Literal["auto"] | bool = "auto"
    """Whether a GPU runs a training step as one CUDA graph. "auto": if a batch is small and the images stay there."""
    max_retries: Annotated[int, Field(ge=0)] = 5
    """How often another worker resumes a trial after its worker died."""
    storage_patience_min: Minutes = 30.0
    """Minutes that a worker waits for a database that does not answer."""
    heartbeat_s: Seconds = 30
    """Interval between two heartbeats of a running trial, in seconds."""
    grace_s: Seconds = 180
    """Seconds without a heartbeat after which another worker resumes a running trial."""
    checkpoints: str | None = None
    """A folder that all workers see, or an fsspec URL. The default is `checkpoints` in the folder of decoded images."""
    checkpoint_s: PositiveFloat = 30.0
    """Seconds between two checkpoints of a running trial, or one epoch if that takes longer. This much training is
    repeated at most after a worker dies."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grace_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"workers.grace_s is {self.grace_s}, must be at least {2 * self.heartbeat_s}, twice heartbeat_s: "
                "otherwise a live worker counts as dead"
            )
        return self


@dataclass(frozen=True)
class Cluster:
    """The Slurm resources of each worker (`--cluster slurm`). These keys may change under the same name."""

    __pydantic_config__ = _STRICT
    partition: str | None = None
    """The default is the cluster's."""
    account: str | None = None
    """The default is the cluster's."""
    qos: str | None = None
    """Quality of service. The default is the cluster's."""
    constraint: str | None = None
    """Features that the node must have, such as "a100"."""
    time_limit_min: PositiveInt = 240
    """Time limit of one run of a job, in minutes. A job at its limit is requeued while trials remain."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 1
    """GPUs of each worker. With 0 it trains on the CPU."""
    cpus_per_worker: PositiveInt = 4
    """CPU cores of each worker."""
    memory_gib: Gibibytes | None = None
    """The node's memory for each worker, in GiB. The default is the partition's."""
    max_requeues: Annotated[int, Field(ge=0)] = 20
    """How often a worker requeues its job after a preemption or at the time limit."""
    logs: Path | None = None
    """Folder of the logs, which all nodes see. The default is ~/.local/state/acuity/log."""
    setup: tuple[str, ...] = ()
    """Shell lines before the worker, such as module load."""
    extra: dict[str, OptionValue] = field(default_factory=dict)
    """Further options of sbatch, by long name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = Faults()
        for option in self.extra:
            with faults:
                if option in _RESERVED_OPTIONS:
                    raise ValueError(
                        f"cluster.extra has {option}, which Acuity sets itself; use the other keys of [cluster] instead"
                    )
                if not re.fullmatch(r"[a-z][a-z-]*", option):
                    raise ValueError(
                        f'cluster.extra has "{option}", must be a long option of sbatch, such as "nodelist"'
                    )
        faults.report()
        return self


@dataclass(frozen=True)
class Tracking:
    """Trackers that keep each trial as a run. These keys may change under the same name."""

    __pydantic_config__ = _STRICT
    mlflow: (
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9+]*:\S+$"), Rule("MLflow's URI, such as http://host:5000")] | None
    ) = None
    """MLflow's tracking URI. The password is in the variable MLFLOW_TRACKING_PASSWORD, the user in _USERNAME."""
    wandb: WandbProject | None = None
    """A project of Weights & Biases. With WANDB_MODE=offline, runs stay on the worker's disk."""
    tensorboard: Path | None = None
    """A folder for TensorBoard."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mlflow is not None and "@" in self.mlflow.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "tracking.mlflow has a user or a password, which the database would store; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for the workers instead"
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """A named set of studies over one image set, with one study per label."""

    __pydantic_config__ = _STRICT
    name: Name
    """Name of the experiment in the storage: letters, digits, '.', '_' and '-', at most 64."""
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    """The diagnoses, named as in the index. Each has one study, and each trial trains one binary network."""
    data: Data
    search: Search
    training: Training
    confirm: Confirm = field(default_factory=Confirm)
    workers: Workers = field(default_factory=Workers)
    cluster: Cluster = field(default_factory=Cluster)
    tracking: Tracking = field(default_factory=Tracking)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require_unique("labels", self.labels)
        return self


def _require_unique(key: str, values: Sequence[object]) -> None:
    repeated = sorted(str(value) for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ValueError(f"{key} has {', '.join(repeated)} more than once; name each once")
