"""What the user can mend about an experiment or a command."""


class DeviceLostError(Exception):
    """The device no longer computes in this process; another process can continue."""


class UsageError(Exception):
    """A command or experiment that cannot be carried out as written; names the value, the rule and the next step."""
