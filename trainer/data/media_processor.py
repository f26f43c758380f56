"""Load the processor of a model that reads images or audio clips among the tokens of a text.

Images are processed by Pillow. Many processors, such as those of Qwen2-VL and SmolVLM, also have a part for videos,
which needs torchvision. Videos are not read, so this part is replaced by one that only keeps its settings for saving.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

from ...models.json_file import object_in

PROCESSOR, PREPROCESSOR, VIDEOS = "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"
"""Files with the settings of a processor, of its part for images, and of its part for videos."""
NAMED_IN = (PROCESSOR, PREPROCESSOR, VIDEOS, "tokenizer_config.json")
"""Files that may name the class of a processor, in the order in which transformers looks."""
VIDEO_PART = "video_processor"
PARTS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "tokenizer": (AutoTokenizer, {}),
    "image_processor": (AutoImageProcessor, {"backend": "pil"}),
    "feature_extractor": (AutoFeatureExtractor, {}),
}
"""Parts of a processor that are loaded -> their Auto class, and options for it."""


class UnreadVideos(ImageProcessingMixin):
    """The part of a processor for videos, which reads none and keeps its settings."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.model_input_names: list[str] = []

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)


class MediaProcessor:
    """Loads processors; has ``from_pretrained`` like the Auto classes of transformers."""

    @staticmethod
    def from_pretrained(folder: str | Path, **options: Any) -> Any:
        """The processor in a folder.

        Args:
            options: options of ``from_pretrained`` for its parts.

        Raises:
            OSError, ValueError, ImportError: as transformers raises them.
        """
        kind = _class_of(Path(folder))
        parts = [*kind.get_attributes()] if kind is not None else []
        if kind is None or VIDEO_PART not in parts or not {*parts} <= {VIDEO_PART, *PARTS}:
            own = {} if kind is None else {"backend": "pil"}
            return AutoProcessor.from_pretrained(str(folder), **own, **options)
        settings, _ = kind.get_processor_dict(str(folder), **options)
        given: dict[str, Any] = {VIDEO_PART: UnreadVideos(_video_settings(Path(folder), settings))}
        for name in parts:
            if name != VIDEO_PART:
                factory, own = PARTS[name]
                given[name] = factory.from_pretrained(str(folder), **own, **options)
        taken = [name for name in inspect.signature(kind.__init__).parameters if name not in parts and name in settings]
        return constructed(kind, given | {name: settings[name] for name in taken})


def constructed(kind: Any, arguments: Mapping[str, Any]) -> Any:
    """A processor of class ``kind``, made without the check of the classes of its parts: transformers finds the class
    of a part for videos only if torchvision is installed."""
    processor = kind.__new__(kind)
    vars(processor)["check_argument_for_proper_class"] = lambda _, part: type(part)
    kind.__init__(processor, **arguments)
    del vars(processor)["check_argument_for_proper_class"]
    return processor


def _class_of(folder: Path) -> Any:
    """The class of the processor in a folder; None if no file names one that transformers has."""
    names = [found.get("processor_class") for file in NAMED_IN if (found := object_in(folder / file))]
    config = object_in(folder / "config.json")
    names += [config.get("processor_class"), PROCESSOR_MAPPING_NAMES.get(str(config.get("model_type")))]
    return next((processor_class_from_name(name) for name in names if name), None)


def _video_settings(folder: Path, processor: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the part for videos: own ones, or, in folders of old versions, those of the part for images."""
    if own := processor.get(VIDEO_PART) or object_in(folder / VIDEOS):
        return dict(own)
    images = object_in(folder / PREPROCESSOR)
    return {name: value for name, value in images.items() if name not in ("image_processor_type", "processor_class")}
