"""Send each trial, and the verdicts, to MLflow, Weights & Biases or TensorBoard as a run."""
