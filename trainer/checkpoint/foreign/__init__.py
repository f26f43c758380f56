"""Read the checkpoints of other tools: DeepSpeed, transformers' Trainer, torch's distributed checkpoint."""
