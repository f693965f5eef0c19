"""A command on a pseudo-terminal, as a user runs it."""

import os
import pty
import select
import subprocess
import time

from support.commands import ACUITY


class Terminal:
    """A command on a pseudo-terminal, and the text that it has written there."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [*ACUITY, *arguments],
            env=environment | {"TERM": "xterm", "COLUMNS": "110", "LINES": "40"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        self.shown = ""

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Read until the words appear. Then the text before them is dropped."""
        deadline = time.monotonic() + seconds
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if not self._read():
                assert words in self.shown, self.shown
        self.shown = self.shown[self.shown.index(words) :]

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def wait(self) -> int:
        while self._read():
            pass
        return self.process.wait(timeout=60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._screen)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], 0.2)
        if not ready:
            return True
        try:
            new = os.read(self._screen, 65536)
        except OSError:  # the other side is closed
            return False
        self.shown += new.decode(errors="replace")
        return bool(new)
