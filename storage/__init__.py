"""The ground that a fleet shares: one Postgres (embedded or named), its schema `acuity`, and the checkpoints.

Knows Optuna's storage and SQLAlchemy, nothing of images or networks.
"""
