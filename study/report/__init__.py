"""The report, its figures and methods text, and exported networks."""
