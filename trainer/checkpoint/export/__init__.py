"""Export checkpoints as model folders for transformers or as adapter folders for peft. Adapters can be merged into the
base model, and weights can be quantised.
"""
