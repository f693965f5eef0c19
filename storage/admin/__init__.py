"""Grants, and moving a database."""
