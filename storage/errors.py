"""Errors of the database and the checkpoints that the user can correct."""


class StorageError(Exception):
    """The storage cannot be used; the message names the value, the rule and the next step."""


class OutageError(StorageError):
    """The database could not be reached in time; the same call may succeed later."""
