"""Rules between two sections of an experiment file, and between the file and its image set."""

from acuity.study.config.faults import Faults
from acuity.study.config.schema import Experiment
from acuity.study.errors import UsageError


def check_across_sections(experiment: Experiment) -> None:
    """ValueError, with a line each, where keys of two sections contradict each other."""
    search, faults = experiment.search, Faults()
    for resolution in experiment.confirm.resolutions or ():
        with faults:
            if resolution not in search.resolutions:
                raise ValueError(
                    f"confirm.resolutions has {resolution}, must be among search.resolutions: the search supplies the "
                    "configurations to confirm"
                )
    training = experiment.training
    for architecture in search.architectures:
        with faults:
            if ":" in architecture and (training.pretrained or training.weights is not None):
                key = "pretrained" if training.pretrained else "weights"
                raise ValueError(
                    f"training.{key} is given, but {architecture} in search.architectures is not timm's; load the "
                    f"weights in the function, and leave training.{key} out"
                )
    with faults:
        if training.train is not None and experiment.workers.capture_steps is True:
            raise ValueError(
                "training.train and workers.capture_steps = true are both given; keep one of the two: a function of "
                "yours decides how its steps run"
            )
    with faults:
        if experiment.name in search.learn_from:
            raise ValueError(
                f"search.learn_from has {experiment.name}, this experiment's name; its labels learn from each other "
                "anyway, so leave it out"
            )
    with faults:
        weak = ["paper_split"] * experiment.data.paper_split + ["split_by"] * (experiment.data.split_by == "image")
        if experiment.confirm.design == "cross-fitted" and weak:
            raise ValueError(
                f'confirm.design = "cross-fitted" and data.{weak[0]} are both given; keep one of the two: '
                "cross-fitting needs a split by patient with a test part"
            )
    faults.report()


def check_fixed_batch(experiment: Experiment, training_images: int) -> None:
    """UsageError where a fixed batch size leaves an epoch too few optimiser steps: no trial would be feasible."""
    search = experiment.search
    most = training_images // search.min_updates_per_epoch
    most = most // 8 * 8 or most  # as a trial's feasible batch is rounded
    if isinstance(search.batch, int) and search.batch > most:
        raise UsageError(
            f"search.batch is {search.batch}, must be at most {most}: {training_images:,} training images and at least "
            f"min_updates_per_epoch = {search.min_updates_per_epoch} steps an epoch, down to a multiple of 8"
        )
