"""Data: sources, tokenizers, packing, collators, and the order of samples."""
