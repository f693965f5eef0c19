"""Experiments, studies and claimed trials in the database."""
