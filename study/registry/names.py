"""Names of an experiment's studies."""


def study_name(experiment: str, label: str) -> str:
    """The Optuna study of a label's search."""
    return f"{experiment}/{label}"


def confirm_study_name(experiment: str, label: str) -> str:
    """The Optuna study of a label's confirmation."""
    return f"{study_name(experiment, label)}/confirm"
