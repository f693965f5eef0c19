"""The split of an image set into training, validation and test, and duplicate pictures."""
