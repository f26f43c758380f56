"""Engines that choose the trials of a search: optuna, Ray Tune, W&B sweeps and SigOpt."""
