"""One file per model family, each defining ``FAMILY``; found by folder, so a new file is all a new family needs."""
