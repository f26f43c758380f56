"""Trackers, one file each: they send a run's metrics to TensorBoard, W&B, MLflow and others."""
