"""Build the hyperparameters of a training from the experiment and one point of its search space."""

from acuity.objectives.training.interface import Hyperparameters
from acuity.study.config.schema import Experiment


def make_hyperparameters(
    experiment: Experiment, *, architecture: str, resolution: int, batch_size: int, learning_rate: float
) -> Hyperparameters:
    """Combine these parameters with the experiment's [training] section."""
    training = experiment.training
    return Hyperparameters(
        architecture=architecture,
        resolution=resolution,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs=training.epochs,
        network_input=training.network_input,
        pretrained=training.pretrained,
        weights=training.weights,
        precision=training.precision,
        weight_decay=training.weight_decay,
        augment=training.augment,
        augmentation=training.augmentation,
        loss=training.loss,
        train=training.train,
    )
