"""Composes objectives and storage: experiments, the search, workers, the answer. The only package that a person calls."""
