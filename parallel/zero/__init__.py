"""ZeRO plans, which train with DeepSpeed."""
