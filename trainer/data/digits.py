"""A data source that needs no download: the handwritten digits in scikit-learn.

There are 1,797 grey images of 8 x 8 pixels (Alpaydin and Kaynak, 1998).
"""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .content_stamp import hash_json

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Digits:
    """Source of rows with the columns ``image`` and ``label``; it needs no download."""

    def rows(self, cache_dir: str) -> Dataset:
        import numpy as np
        from datasets import ClassLabel, Dataset, Features, Image
        from PIL.Image import fromarray
        from sklearn.datasets import load_digits

        found: Any = load_digits()
        images = []
        for pixels in found.images:  # whole numbers from 0 to 16
            file = io.BytesIO()
            fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        features = Features({"image": Image(decode=False), "label": ClassLabel(names=[str(n) for n in range(10)])})
        return Dataset.from_dict({"image": images, "label": found.target.tolist()}, features=features)

    def column_names(self) -> list[str]:
        return ["image", "label"]

    def look(self) -> None:
        """Refuse to go on without scikit-learn."""
        if importlib.util.find_spec("sklearn") is None:
            why = "needs scikit-learn, which holds the images and is not installed"
            raise UserError(Problem("data.source", why, "pip install 'trireme-train[vision]'"))

    def fingerprint(self) -> str:
        return hash_json(["digits", 1, version("scikit-learn")])

    def content(self) -> str:
        """A fingerprint without the version of scikit-learn, since all versions have the same images."""
        return hash_json(["digits", 1])
