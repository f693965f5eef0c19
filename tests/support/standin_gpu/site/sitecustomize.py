"""Python imports this module at its start: install the stand-in GPU right after torch is imported."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _AfterTorch:
    """Finds torch as always and installs the stand-in when its import is done."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            from support.standin_gpu import install
            from support.standin_gpu.settings import from_environment

            install(from_environment())

        spec.loader.exec_module = exec_module
        return spec


if "ACUITY_STANDIN_GPU" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())
