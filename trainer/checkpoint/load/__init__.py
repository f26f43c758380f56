"""Find a checkpoint and read it under any parallelism plan."""
