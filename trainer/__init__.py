"""The training engine: data, tasks, the training loop, callbacks, trackers and checkpoints."""
