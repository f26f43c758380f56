"""Export checkpoints as model folders for transformers and peft, also merged or quantised."""
