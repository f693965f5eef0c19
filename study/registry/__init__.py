"""An experiment's row, its studies and its trials in the database."""
