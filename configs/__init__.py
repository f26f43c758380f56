"""The typed schema of recipes and the checks of their values; the folders hold the YAML files of the groups."""
