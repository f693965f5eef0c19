"""Composes objectives and storage: experiments, search, workers, answer. The one that a person calls."""
