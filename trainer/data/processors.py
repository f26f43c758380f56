"""Find the processor of pictures or sounds: the one that the recipe names, the one beside the weights, or a new one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from ...models.hub import local_path
from .samples import Given

log = logging.getLogger("trireme.data")
FILES = ("preprocessor_config.json", "processor_config.json")
"""Files of which a folder with a processor holds at least one."""
FIELD = "data.processor"
SAMPLING_RATE = 16_000
"""Samples per second that published models of speech take."""


def image_processor(given: Given, model: Any = None) -> Any:
    """The image processor of the recipe, of the weights, or one made for the size and channels of the model.

    Args:
        model: configuration of the part that sees pictures; None takes the model's.
    """
    folder = processor_folder(given)
    if folder is None:
        return _made_image_processor(model or given.model, given.config.image_size)
    from transformers import AutoImageProcessor

    # Without torchvision, which these processors do not need, transformers takes those of Pillow only where asked.
    processor = loaded(AutoImageProcessor, folder, FIELD, backend="pil")
    if given.config.image_size is not None:
        why = f"is set, and so is the size of the processor in {folder}"
        fix = "leave out data.image_size, or name no processor"
        raise UserError(Problem("data.image_size", why, fix, given.config.image_size))
    return processor


def feature_extractor(given: Given) -> Any:
    """The feature extractor of the recipe, of the weights, or one made for the model."""
    folder = processor_folder(given)
    if folder is None:
        return _made_feature_extractor(given.model, given.config.sampling_rate or SAMPLING_RATE)
    from transformers import AutoFeatureExtractor

    extractor = loaded(AutoFeatureExtractor, folder, FIELD)
    if given.config.sampling_rate not in (None, extractor.sampling_rate):
        why = f"is not the rate of the processor in {folder}, {extractor.sampling_rate}"
        raise UserError(Problem("data.sampling_rate", why, "leave it out", given.config.sampling_rate))
    return extractor


def processor_folder(given: Given) -> Path | None:
    """Folder of the processor that the recipe names, else of the one beside the weights; None if there is neither.

    Raises:
        UserError: the recipe names a folder without a processor.
    """
    named = given.config.processor
    folder = local_path(named, field=FIELD) if named else given.weights
    if folder is None:
        return None
    if any((folder / file).is_file() for file in FILES):
        return folder
    if named:
        why = f"the folder has no {' and no '.join(FILES)}"
        raise UserError(Problem(FIELD, why, "name a folder or hub id with one, or null to make one", named))
    log.info("the weights have no processor beside them: one is made for the model's configuration")
    return None


def loaded(factory: Any, folder: Path, field: str, **options: Any) -> Any:
    """The processor in ``folder``, by an Auto class of transformers.

    Args:
        field: the recipe key that names the folder.

    Raises:
        UserError: transformers cannot make it.
    """
    try:
        return factory.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # errors of many types, such as ImportError for a missing package
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why, fix = f"no processor can be loaded: {reason}", "name another folder, or null to make a processor"
        raise UserError(Problem(field, why, fix, str(folder))) from error


def _made_feature_extractor(model: Any, rate: int) -> Any:
    """A feature extractor of the kind that transformers has for the model's architecture."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES as NAMES
    from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name

    kind: Any = feature_extractor_class_from_name(NAMES.get(model.model_type) or NAMES["wav2vec2"])
    # Group norm of the first convolution sees the padding, so such models are trained without a mask of it.
    masks = getattr(model, "feat_extract_norm", "layer") == "layer"
    return kind(sampling_rate=rate, return_attention_mask=masks)


def _made_image_processor(model: Any, image_size: int | None) -> Any:
    """An image processor of the kind that transformers has for the model's architecture."""
    from transformers.models.auto.image_processing_auto import (
        IMAGE_PROCESSOR_MAPPING_NAMES,
        get_image_processor_class_from_name,
    )

    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model.model_type) or IMAGE_PROCESSOR_MAPPING_NAMES["vit"]
    kind: Any = get_image_processor_class_from_name(str(names.get("pil") or names["torchvision"]))
    processor = kind()
    size, channels = image_size or getattr(model, "image_size", None), channels_of(model)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        asked = dict(processor.size)
        sides = {name: min(height, width) for name, value in asked.items() if value is not None}
        options: dict[str, Any] = {"size": sides}
        if "height" in sides:
            options["size"] = {"height": height, "width": width}
        if getattr(processor, "do_center_crop", None):
            options["crop_size"] = {"height": height, "width": width}
        processor = kind(**options)
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        if isinstance(values, list | tuple) and len(values) != channels:
            setattr(processor, name, [sum(values) / len(values)] * channels)
    return processor


def channels_of(model: Any) -> int:
    """Colour channels of the pictures that a model takes."""
    return int(getattr(model, "num_channels", None) or 3)
