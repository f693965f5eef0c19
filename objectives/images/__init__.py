"""Decoding and resizing of image files, and the cache of arrays."""
