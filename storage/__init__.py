"""Postgres (embedded or named by URL), its schema `acuity` and the checkpoints, shared by all workers.

This package uses Optuna and SQLAlchemy. It knows no images and no networks.
"""
