"""Find or make the image processor or audio feature extractor of a run.

The recipe may name one. Otherwise the one in the folder of the model's weights is used, or a new one is made.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from .processor_folder import FIELD, found_folder
from .samples import Given

log = logging.getLogger("trireme.data")
FIXED = ("nb_max_frames", "nb_max_samples", "max_length")
"""Attributes of feature extractors that bring every audio clip to one length, by padding with silence."""
BINS = ("num_mel_bins", "input_feat_per_channel")
"""Configuration fields with the number of frequencies of a spectrum."""
SAMPLING_RATE = 16_000
"""Samples per second that published models of speech take."""


def image_processor(given: Given) -> Any:
    """The image processor of the recipe, of the weights, or one made for the size and channels of the model."""
    folder = processor_folder(given)
    if folder is None:
        return _made_image_processor(given.model, given.config.image_size)
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
        return _made_feature_extractor(given.model, given.config.sampling_rate)
    from transformers import AutoFeatureExtractor

    extractor = loaded(AutoFeatureExtractor, folder, FIELD)
    if given.config.sampling_rate not in (None, extractor.sampling_rate):
        why = f"is not the rate of the processor in {folder}, {extractor.sampling_rate}"
        raise UserError(Problem("data.sampling_rate", why, "leave it out", given.config.sampling_rate))
    return extractor


def processor_folder(given: Given, made: bool = True) -> Path | None:
    """Folder of the processor that the recipe names, else of the one beside the weights; None if there is neither.

    Args:
        made: a processor is made where there is none.

    Raises:
        UserError: the recipe names a folder without a processor.
    """
    folder = found_folder(given.config.processor, given.weights, made)
    if made and folder is None and given.weights is not None:
        log.info("the weights have no processor beside them: one is made for the model's configuration")
    return folder


MADE = "name another folder, or null to make a processor"


def loaded(factory: Any, folder: Path, field: str, fix: str = MADE, **options: Any) -> Any:
    """The processor in ``folder``, by an Auto class of transformers.

    Args:
        field: the recipe key that names the folder.
        fix: what to do if it cannot be loaded, and no package is missing.

    Raises:
        UserError: transformers cannot make it.
    """
    try:
        return factory.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # errors of many types, such as ImportError for a missing package
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why = f"no processor can be loaded: {reason}"
        if isinstance(error, ImportError):
            fix = "install the package that it needs"
        raise UserError(Problem(field, why, fix, str(folder))) from error


def _made_feature_extractor(model: Any, rate: int | None) -> Any:
    """A feature extractor of the kind that transformers has for the model's architecture."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES as NAMES
    from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name

    kind: Any = feature_extractor_class_from_name(NAMES.get(model.model_type) or NAMES["wav2vec2"])
    taken = inspect.signature(kind.__init__).parameters
    per_second: int = rate or taken["sampling_rate"].default or SAMPLING_RATE
    model = getattr(model, "audio_config", model)
    options: dict[str, Any] = {"sampling_rate": per_second}
    bins = next((getattr(model, name) for name in BINS if getattr(model, name, None)), None)
    # Waveforms have a feature size of 1, whatever the model; spectra have one of the model's.
    names = [name for name in ("feature_size", "num_mel_bins") if name in taken and taken[name].default != 1]
    options |= dict.fromkeys(names, bins) if bins else {}
    if "max_length" in taken and getattr(model, "max_length", None):
        options["max_length"] = model.max_length
    if "chunk_length" in taken and getattr(model, "max_source_positions", None):
        options["chunk_length"] = _seconds(model.max_source_positions, taken["hop_length"].default, per_second)
    if "max_length_s" in taken and hasattr(model, "spec_size"):  # CLAP folds a spectrum into a square
        frames = model.spec_size * (model.spec_size // model.num_mel_bins)
        options["max_length_s"] = frames * taken["hop_length"].default // per_second
        options["frequency_max"] = per_second // 2
        options["truncation"] = "fusion" if model.enable_fusion else "rand_trunc"
    if not any(hasattr(kind(), name) for name in FIXED):
        # Group norm of the first convolution sees the padding, so such models are trained without a mask of it.
        options["return_attention_mask"] = getattr(model, "feat_extract_norm", "layer") == "layer"
    return kind(**options)


def _seconds(positions: int, hop: int, rate: int) -> int:
    """Seconds of the audio clips that an encoder with so many positions takes, each of which is two frames.

    Raises:
        UserError: they are not whole, and the feature extractor counts in whole seconds.
    """
    if positions * 2 * hop % rate:
        why = f"is {positions * 2 * hop / rate:g} seconds of audio at {rate} samples per second, with {hop} per frame"
        fix = f"use a multiple of {rate // hop // 2}, so that the seconds are whole"
        raise UserError(Problem("model.config.max_source_positions", why, fix, positions))
    return positions * 2 * hop // rate


def _made_image_processor(model: Any, image_size: int | None) -> Any:
    """An image processor of the kind that transformers has for the model's architecture."""
    from transformers.models.auto.image_processing_auto import (
        IMAGE_PROCESSOR_MAPPING_NAMES,
        get_image_processor_class_from_name,
    )

    part, channels = vision_part(model), channels_of(vision_part(model))
    known = (model.model_type, part.model_type, "vit")
    names = next(IMAGE_PROCESSOR_MAPPING_NAMES[name] for name in known if name in IMAGE_PROCESSOR_MAPPING_NAMES)
    kind: Any = get_image_processor_class_from_name(str(names.get("pil") or names["torchvision"]))
    processor = kind()
    size = image_size or getattr(part, "image_size", None)
    options: dict[str, Any] = {}
    if hasattr(processor, "max_patches"):  # images of any size become so many patches
        side = int((part.patch_embed_hidden_size / channels) ** 0.5)
        options = {"max_patches": part.seq_len, "patch_size": {"height": side, "width": side}}
    elif size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        cuts = getattr(processor, "do_center_crop", None)
        for name in ("size", "crop_size") if cuts else ("size",):
            options[name] = _sides(getattr(processor, name, None), height, width)
    processor = kind(**options)
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        if isinstance(values, list | tuple) and len(values) != channels:
            setattr(processor, name, [sum(values) / len(values)] * channels)
    return processor


def _sides(usual: Any, height: int, width: int) -> dict[str, int]:
    """A size under the names that a processor uses: height and width, or the shortest and the longest edge."""
    names = [name for name, value in dict(usual or {}).items() if value is not None]
    if not names or "height" in names:
        return {"height": height, "width": width}
    return dict.fromkeys(names, min(height, width))


def vision_part(model: Any) -> Any:
    """The configuration of the part of a model that sees images: its own, or one inside of it."""
    found = (getattr(model, name, None) for name in ("vision_config", "backbone_config", "encoder"))
    return next((part for part in found if hasattr(part, "model_type")), model)


def channels_of(model: Any) -> int:
    """Colour channels of the images that a model takes."""
    return int(getattr(model, "num_channels", None) or 3)
