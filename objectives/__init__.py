"""Hyperparameters and an image set in, a validation AUC out: index, split, image cache, network, training, metrics.

Knows torch and timm, no database and no optimiser of hyperparameters: training reports through a plain callable.
"""
