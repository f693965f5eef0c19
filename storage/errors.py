"""What the user can mend about the database or the checkpoints."""


class StorageError(Exception):
    """A storage that cannot be used as asked; the message names the value, the rule and the next step."""


class OutageError(StorageError):
    """A database that is away, for longer than was to be waited: the same call may succeed later."""
