"""Checkpoints: write, find, read, remove and export them, and read those of other tools."""
