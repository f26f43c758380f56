"""Hyperparameter search: ``trireme search`` and ``trireme.search`` for notebooks."""
