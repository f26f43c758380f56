"""Searches by the real libraries of other engines. A file is only collected where its libraries are installed: `make
search-engines` has an environment for each."""

from __future__ import annotations

from trireme.trainer.trackers.tracker_library import is_installed

NEEDED = {"ray": "ray", "wandb": "sweeps", "sigopt": "sigoptlite", "hydra": "hydra_plugins.hydra_optuna_sweeper"}
collect_ignore = [f"test_{name}.py" for name, module in NEEDED.items() if not is_installed(module)]
