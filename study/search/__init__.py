"""The search space, the initial trials and the recipes that labels share."""
