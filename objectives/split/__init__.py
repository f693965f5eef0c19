"""The split by patient, and duplicate pictures."""
