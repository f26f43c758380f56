"""Engines that choose the trials of a hyperparameter search: optuna, Ray Tune, W&B sweeps and SigOpt."""
