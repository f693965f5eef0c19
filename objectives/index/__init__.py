"""The index of an image set: file, patient, labels and view of each image."""
