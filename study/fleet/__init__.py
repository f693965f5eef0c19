"""Many workers: start, restart, submit to Slurm, stop."""
