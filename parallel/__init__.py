"""Parallelism plans: how a model and its training state are spread over ranks, and how a step is computed."""
