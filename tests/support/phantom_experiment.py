"""An experiment on a copy of the phantoms that a test may change."""

import shutil
from pathlib import Path


def copy_phantoms(phantoms: Path, folder: Path) -> None:
    """Copy the index and the images of the phantoms into the folder, as Data_Entry.csv and images."""
    shutil.copytree(phantoms.parent / "images", folder / "images")
    shutil.copy(phantoms, folder / "Data_Entry.csv")


def experiment_text(
    *,
    labels: str = '["Cardiomegaly"]',
    index: Path | str = "Data_Entry.csv",
    images: Path | str = "images",
    data: str = "",
    resolutions: str = "[32, 64]",
    trials: int = 12,
) -> str:
    """The text of the experiment file "mine". data: further lines of its section [data]."""
    return f"""
name = "mine"
labels = {labels}
[data]
index = "{index}"
images = "{images}"
cache = "cache"
{data}
[search]
resolutions = {resolutions}
architectures = ["test_resnet"]
trials = {trials}
[training]
epochs = 1
"""
