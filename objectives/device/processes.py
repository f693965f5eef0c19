"""Spawn processes that do not run the user's script again."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any


def spawned_pool(processes: int, **options: Any) -> ProcessPoolExecutor:
    """A pool of spawned processes: the caller may hold CUDA, threads and database connections, so it must not fork.

    The processes do not import the main module. Python's own would run a script without `if __name__ == "__main__":`
    in each of them, and fail. options: further ones of ProcessPoolExecutor.
    """
    return ProcessPoolExecutor(processes, mp_context=_Context(), **options)


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  # the name is Python's
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # it has no file that the new process could import
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _Context(SpawnContext):
    Process = _Process
