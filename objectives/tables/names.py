"""Suggest a name for one that is not known."""

import difflib
from collections.abc import Sequence


def suggest_name(wrong: str, known: Sequence[str]) -> str:
    """The last sentence of a message about an unknown name: the most similar known name, or all of them."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=1)
    if near:
        return f'The nearest there is "{by_lower[near[0]]}"'
    return f"There are: {', '.join(known)}" if known else "There are none"
