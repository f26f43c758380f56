"""Preferences: pairs of answers of which one was chosen, and single answers that are called good or bad."""
