"""What the user can mend in an image set or a setting."""


class InputError(ValueError):
    """A mistake in the user's image set or settings; the message names the value, the rule and the next step."""


class UnreadableImageError(Exception):
    """Why a file gives no whole image; without its name, which may identify a patient."""
