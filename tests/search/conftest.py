"""Skips the test files of hyperparameter search engines whose libraries are not installed.

``make search-engines`` creates an environment for each library and runs its tests there.
"""

from __future__ import annotations

from trireme.trainer.trackers.tracker_library import is_installed

NEEDED = {"ray": "ray", "wandb": "sweeps", "sigopt": "sigoptlite", "hydra": "hydra_plugins.hydra_optuna_sweeper"}
collect_ignore = [f"test_{name}.py" for name, module in NEEDED.items() if not is_installed(module)]
