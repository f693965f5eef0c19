"""Collect the broken rules of a section, so that all of them are reported together."""

from types import TracebackType


class Faults:
    """Each `with faults:` block checks one rule and raises ValueError if it is broken."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def __enter__(self) -> None:
        """Begin to check a rule."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        """Keep a ValueError."""
        if not isinstance(error, ValueError):
            return False
        self._messages.append(str(error))
        return True

    def report(self) -> None:
        """ValueError with one line per broken rule."""
        if self._messages:
            raise ValueError("\n".join(self._messages))
