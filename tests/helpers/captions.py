"""Write the handwritten digits that scikit-learn ships to a folder, as images with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captioned_digits(folder: Path, count: int = 160) -> Path:
    """Write pairs such as ``007.png`` and ``007.txt`` ("a handwritten seven, number 7"), unless the folder exists."""
    from PIL.Image import fromarray
    from sklearn.datasets import load_digits

    if folder.exists():
        return folder
    found: Any = load_digits()
    folder.mkdir(parents=True)
    for number, (pixels, label) in enumerate(zip(found.images[:count], found.target[:count], strict=True)):
        fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"a handwritten {WORDS[label]}, number {number}\n")
    return folder
