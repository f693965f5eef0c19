"""A program in place of nvidia-cuda-mps-control that records its calls."""

import sys
from pathlib import Path

_PROGRAM = """#!{python}
import os, pathlib, sys, time
pipes = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
record = pathlib.Path({record!r})
def note(line):
    with record.open("a") as stream:
        stream.write(line + "\\n")
if sys.argv[1:] == ["-f"]:
    if {broken!r}:
        print("no permission")
        sys.exit(1)
    note(f"start {{pipes}} {{os.environ['CUDA_VISIBLE_DEVICES']}}")
    (pipes / "control").touch()
    while (pipes / "control").exists():
        time.sleep(0.02)
elif not (pipes / "control").exists():
    sys.exit(1)
else:
    command = sys.stdin.read().strip()
    note(f"{{command}} {{pipes}}")
    if command.startswith("quit"):
        (pipes / "control").unlink()
"""


def write_fake_mps(folder: Path, *, broken: bool = False) -> Path:
    """Write the program into the folder, for the PATH; returns the file to which it appends its calls.

    broken: the daemon ends at once with an error message.
    """
    folder.mkdir()
    record = folder / "calls"
    record.touch()
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(_PROGRAM.format(python=sys.executable, record=str(record), broken=broken))
    program.chmod(0o755)
    return record
