"""Decoding of image files and the cache of arrays."""
