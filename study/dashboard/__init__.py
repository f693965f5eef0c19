"""optuna-dashboard behind a password, with notes and plots."""
