"""The command `acuity` in a new process."""

import subprocess
import sys
from collections.abc import Mapping

ACUITY = [sys.executable, "-m", "acuity"]


def acuity(*arguments: str, environment: Mapping[str, str], status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `acuity` to its end and check its exit status."""
    done = subprocess.run([*ACUITY, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done
