"""Retraining of nominees and the verdict on held-out patients."""
