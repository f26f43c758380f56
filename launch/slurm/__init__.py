"""Submit, follow and cancel runs as SLURM jobs."""
