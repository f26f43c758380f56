"""Write a run's checkpoints, also in the background."""
