"""The table of images: file, patient, labels, view."""
