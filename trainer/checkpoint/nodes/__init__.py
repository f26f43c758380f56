"""Checkpoints of runs whose machines have no shared disk."""
