"""Acuity's tables and views in Postgres."""
