"""Files of experiments that a few workers finish in seconds."""

from pathlib import Path


def write_tiny_experiment(
    folder: Path,
    phantoms: Path,
    *,
    labels: str = '["Cardiomegaly", "Nodule"]',
    trials: int = 5,
    epochs: int = 2,
    cache: Path | None = None,
) -> Path:
    """Write tiny.toml into the folder: an experiment on the phantoms, with a grace period of 3 s.

    phantoms: the index of the phantoms.
    """
    file = folder / "tiny.toml"
    file.write_text(
        f"""
        name = "tiny"
        labels = {labels}
        [data]
        index = "{phantoms}"
        images = "{phantoms.parent / "images"}"
        split = "tiny.split.csv"
        {"" if cache is None else f'cache = "{cache}"'}
        [search]
        resolutions = [16, 32]
        architectures = ["test_resnet"]
        trials = {trials}
        min_complete_per_resolution = 2
        min_batch_size = 4
        min_updates_per_epoch = 5
        [training]
        epochs = {epochs}
        [workers]
        heartbeat_s = 1
        grace_s = 3
        """
    )
    return file


def confirmable_experiment(*, name: str, index: str, images: str, epochs: int) -> str:
    """The text of a file of an experiment that learns Cardiomegaly and can be confirmed with 1,200 phantoms."""
    return f"""
name = "{name}"
labels = ["Cardiomegaly"]
[data]
index = "{index}"
images = "{images}"
cache = "cache"
[search]
resolutions = [16, 32]
architectures = ["test_resnet"]
trials = 4
min_complete_per_resolution = 2
learning_rate = [5e-3, 2e-2]
max_batch_size = 32
[training]
epochs = {epochs}
augment = false
[confirm]
folds = 3
margin = 0.1
[workers]
heartbeat_s = 1
grace_s = 3
"""
