"""A command on a pseudo-terminal, as a user runs it."""

import os
import pty
import select
import subprocess
import threading
import time

from support.commands import ACUITY


class Terminal:
    """A command on a pseudo-terminal, and the text that it has written there.

    A thread reads all the time: a command whose terminal nobody reads waits as soon as some kilobytes are written.
    """

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
        self._written, self._seen, self._closing = "", 0, threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def shown(self) -> str:
        """What was written, from the words on that `wait_for` waited for last."""
        return self._written[self._seen :]

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Wait until the words appear. Then the text before them is dropped."""
        deadline = time.monotonic() + seconds
        while words not in self.shown:
            ended = not self._reader.is_alive()
            assert words in self.shown or not (ended or time.monotonic() > deadline), self.shown
            time.sleep(0.02)
        self._seen += self.shown.index(words)

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def wait(self) -> int:
        self._reader.join(timeout=120)
        return self.process.wait(timeout=60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._closing.set()
        self._reader.join(timeout=120)
        os.close(self._screen)

    def _read(self) -> None:
        while not self._closing.is_set():
            ready, _, _ = select.select([self._screen], [], [], 0.2)
            if not ready:
                continue
            try:
                new = os.read(self._screen, 65536)
            except OSError:  # the other side is closed
                return
            self._written += new.decode(errors="replace")
