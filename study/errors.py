"""What the user can mend about an experiment or a command."""


class DeviceLostError(Exception):
    """This process's device computes no more: the process has to end, another one may go on."""


class UsageError(Exception):
    """A command or experiment that cannot be carried out as written; names the value, the rule and the next step."""
