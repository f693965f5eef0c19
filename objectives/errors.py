"""Mistakes in an image set or a setting."""


class InputError(ValueError):
    """A mistake in the user's image set or settings; the message names the value, the rule and the next step."""


class UnreadableImageError(Exception):
    """Why a file gives no whole image; without its name, which may identify a patient."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, at most 200 characters; the error's type if there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
