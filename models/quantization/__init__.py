"""Quantised base models (load them, train adapters beside them, export them) and quantisation-aware training."""
