"""Errors of the database and the checkpoints that the user can correct."""


class StorageError(Exception):
    """The storage cannot be used; the message names the value, the rule and the next step."""


class OutageError(StorageError):
    """The database could not be reached in time; the same call may succeed later."""


class MissingError(StorageError, KeyError):
    """The database no longer has a trial or a study. Optuna expects a KeyError."""

    __str__ = StorageError.__str__

    def __init__(self, what: str, row_id: int) -> None:
        super().__init__(
            f"the database no longer has the {what} with id {row_id}: its experiment was deleted, or the database was "
            "restored from an earlier backup. Launch the experiment again"
        )
