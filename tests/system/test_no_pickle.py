"""No file that others can write is unpickled: a malicious file is refused and runs no code."""

import ast
import contextlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from acuity import objectives, storage, study
from acuity.objectives.errors import InputError
from acuity.objectives.images.arrays import CacheArray, open_complete
from acuity.objectives.training.checkpoint import checkpoint_from_bytes, read_network_state
from acuity.objectives.training.interface import Hyperparameters
from acuity.objectives.training.network import make_network
from acuity.objectives.training.prediction import score_images

_UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_HYPERPARAMETERS = Hyperparameters(
    architecture="test_resnet", resolution=16, batch_size=2, learning_rate=1e-3, epochs=1
)


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sprung),)


@pytest.fixture(params=["pickle", "torch", "torch in its old format"])
def malicious(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    trap, buffer = Trap(tmp_path / "sprung"), io.BytesIO()
    if request.param == "pickle":
        return pickle.dumps({"network": trap, "identity": trap}, protocol=2)
    torch.save({"network": trap}, buffer, _use_new_zipfile_serialization="old" not in request.param)
    return buffer.getvalue()


def test_unpickling_the_trap_runs_its_code(malicious: bytes, tmp_path: Path) -> None:
    with contextlib.suppress(Exception):  # torch.load fails after it has unpickled the bare pickle
        torch.load(io.BytesIO(malicious), weights_only=False)
    assert (tmp_path / "sprung").exists()


def test_malicious_checkpoint_runs_no_code(malicious: bytes, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert checkpoint_from_bytes(malicious, identity="any") is None
    with pytest.raises((pickle.UnpicklingError, zipfile.BadZipFile)):  # an old format is no archive
        read_network_state(malicious)
    images, rows = np.zeros((2, 16, 16), np.uint8), np.arange(2)
    with pytest.raises(InputError, match="its checkpoint is damaged"):
        score_images(malicious, _HYPERPARAMETERS, images, rows, device=cpu)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_malicious_weights_run_no_code(malicious: bytes, tmp_path: Path, suffix: str) -> None:
    weights = tmp_path / f"weights{suffix}"
    weights.write_bytes(malicious)
    with pytest.raises(InputError, match="cannot be loaded into test_resnet"):
        make_network("test_resnet", input_size=16, weights=weights)
    assert not (tmp_path / "sprung").exists()


def test_malicious_array_in_the_cache_runs_no_code_and_counts_as_missing(tmp_path: Path) -> None:
    array = CacheArray(tmp_path, "key", 1, 16)
    with array.path.open("wb") as file:
        np.save(file, np.array([Trap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    assert open_complete(array) is None
    assert not (tmp_path / "sprung").exists()


def test_no_source_file_unpickles() -> None:
    """Refused: torch.load without an explicit weights_only=True, allow_pickle, modules that unpickle."""
    faults = []
    for package in (objectives, storage, study):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _unpickles(node):
                    faults.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not faults


def _unpickles(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load":
        return keywords.get("weights_only") != "True"
    return (
        name.split(".")[0] in _UNPICKLERS
        or name.endswith(("read_pickle", "torch.jit.load", "hub.load", "job_environment"))
        or keywords.get("allow_pickle", "False") != "False"
    )
