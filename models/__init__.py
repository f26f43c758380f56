"""Model families and models: descriptions, weights, losses, adapters, quantisation, and trireme's own architectures."""
