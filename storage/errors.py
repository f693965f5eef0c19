"""What the user can mend about the database or the checkpoints."""


class StorageError(Exception):
    """A storage that cannot be used as asked; the message names the value, the rule and the next step."""
