"""Synthetic radiographs with findings that need a known resolution."""
