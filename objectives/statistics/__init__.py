"""Metrics, intervals, tests and power. Imports no torch."""
