"""Preference data: pairs of a chosen and a rejected answer, and single answers that are labelled good or bad."""
