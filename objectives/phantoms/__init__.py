"""Synthetic radiographs whose findings need a known resolution."""
