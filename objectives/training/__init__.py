"""Training of one network for one label."""
