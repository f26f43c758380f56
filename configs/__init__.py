"""The recipe as typed Python classes and its checks, beside the YAML files of the configuration groups."""
