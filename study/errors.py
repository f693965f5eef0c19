"""What the user can mend about an experiment or a command."""


class UsageError(Exception):
    """A command or experiment that cannot be carried out as written; names the value, the rule and the next step."""
