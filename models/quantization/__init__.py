"""Quantised base models: load, train beside, save and export them."""
