"""The typed schema of recipes and the checks of their values. Each folder holds the YAML files of one part of a recipe,
such as ``optimizer/adamw.yaml`` for ``optimizer=adamw``.
"""
