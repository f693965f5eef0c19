"""The images of an experiment: selection, split and cached pixels."""
