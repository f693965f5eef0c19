"""Folders that several benchmarks read from and write to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NIH = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")).resolve()
"""Folder of NIH radiographs: nih-cxr-128, nih-cxr-1024 and nih-metadata."""


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder in ACUITY_BENCH_DIR, which root's embedded Postgres can reach under its own account."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=os.environ.get("ACUITY_BENCH_DIR")) as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder
