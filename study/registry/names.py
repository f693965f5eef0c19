"""Names of an experiment's studies."""


def study_name(experiment: str, label: str) -> str:
    """The Optuna study of a label's search. In the label / is %2F and % is %25, so that the name has one slash."""
    return f"{experiment}/{label.replace('%', '%25').replace('/', '%2F')}"


def confirm_study_name(experiment: str, label: str) -> str:
    """The Optuna study of a label's confirmation."""
    return f"{study_name(experiment, label)}/confirm"
