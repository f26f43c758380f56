"""Checkpoints: write, find, read, convert and export them."""
