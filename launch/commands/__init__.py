"""The ``trireme`` commands: one file each, with arguments, help and examples."""
