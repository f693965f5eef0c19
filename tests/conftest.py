"""Fixtures that every test may use: a real Postgres with a fresh database a test, a small set of phantoms."""
