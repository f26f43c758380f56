"""Training with DeepSpeed ZeRO: the engine, its configuration and its checkpoints."""
