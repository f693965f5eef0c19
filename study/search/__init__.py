"""The search space, the initial design and the recipes that labels share."""
