"""Show a collated sample by the names that its inputs have in transformers: texts, pictures, sounds, labels, and
numbers for everything else.

A kind of input is one small function here; ``Samples.views`` may show its own samples in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ....models.facts import Facts
from ....models.loss import IGNORE
from .token_views import token_view
from .views import Collated, Picture, Sound, Text, View, numbers

MASKS = ("attention_mask", "decoder_attention_mask", "pixel_mask", "token_type_ids", "position_ids")
"""Inputs that are not shown beside those that they are about."""
TOKENS, TARGET = "input_ids", "labels"


def sample_views(sample: Collated, processor: Any, tokenizer: Any, facts: Facts) -> dict[str, View]:
    """Views of a sample by the names of its inputs and targets."""
    found: dict[str, View] = {}
    inputs, targets = dict(leaves(sample.inputs)), dict(leaves(sample.targets))
    beside = TARGET if tokenizer is not None and _stand_beside(sample, inputs, targets) else None
    for name, value in inputs.items():
        if name in MASKS:
            continue
        if tokenizer is not None and name.endswith("input_ids") and _is_row(value):
            labels = targets[TARGET].tolist() if name == TOKENS and beside else None
            beneath = inputs.get(name.replace(TOKENS, "attention_mask"))
            mask = beneath.tolist() if beneath is not None and beneath.shape == value.shape else None
            names = facts.labels if labels is not None else ()
            found[name] = token_view(tokenizer, value.tolist(), labels, sample.head == "causal_lm", mask, names)
        else:
            found[name] = _picture(name, value, processor) or _sound(name, value, inputs, processor) or numbers(value)
    for name, value in targets.items():
        if name != beside:
            found[name] = _label(name, value, tokenizer, facts) or numbers(value)
    return found


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of a tree by dotted names."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for place, value in enumerate(tree):
            yield from leaves(value, f"{name}.{place}")
    else:
        yield name, np.asarray(tree)


def _is_row(value: np.ndarray) -> bool:
    return value.ndim == 1 and value.dtype.kind in "iu"


def _stand_beside(sample: Collated, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> bool:
    """Whether there is a label for each token that the model reads. Those of a decoder are a text of their own."""
    tokens, labels = inputs.get(TOKENS), targets.get(TARGET)
    if tokens is None or labels is None or sample.head == "seq2seq_lm" or "decoder_input_ids" in inputs:
        return False
    return _is_row(tokens) and _is_row(labels) and len(tokens) == len(labels)


def _picture(name: str, value: np.ndarray, processor: Any) -> View | None:
    """Pixels as they were before the processor normalised them, or a spectrogram with time from left to right."""
    about = f"{' x '.join(map(str, value.shape))}, {value.min():.3g} to {value.max():.3g}" if value.size else ""
    if name.endswith("pixel_values") and value.ndim == 3 and value.shape[0] in (1, 3, 4) and value.size:
        return Picture(_denormalised(value, getattr(processor, "image_processor", processor)), about)
    if name.endswith("input_features") and value.ndim == 2 and value.size:
        bands = value.T if value.shape[0] > value.shape[1] else value  # some extractors put time first
        return Picture(_stretched(bands[::-1]), about)
    return None


def _denormalised(pixels: np.ndarray, processor: Any) -> np.ndarray:
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    colours = np.asarray(pixels, np.float32)
    if getattr(processor, "do_normalize", False) and _per_channel(mean, pixels) and _per_channel(deviation, pixels):
        scale, shift = (np.asarray(values, np.float32)[:, None, None] for values in (deviation, mean))
        colours = colours * scale + shift
        shown = np.clip(colours * 255.0, 0, 255).round().astype(np.uint8)
    elif colours.min() >= 0 and colours.max() <= 1:
        shown = (colours * 255.0).round().astype(np.uint8)
    else:
        shown = _stretched(colours)
    return shown[0] if len(shown) == 1 else np.ascontiguousarray(shown[:3].transpose(1, 2, 0))


def _per_channel(values: Any, pixels: np.ndarray) -> bool:
    return isinstance(values, list | tuple) and len(values) == len(pixels)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Numbers as shades, the least black and the greatest white."""
    found = np.nan_to_num(np.asarray(values, np.float32))
    low, high = float(found.min()), float(found.max())
    return ((found - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)


def _sound(name: str, value: np.ndarray, inputs: Mapping[str, np.ndarray], processor: Any) -> View | None:
    """A waveform without its padding, as loud as it can be: extractors bring sounds to one variance."""
    rate = getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", None)
    if rate is None or value.ndim != 1 or value.dtype.kind != "f" or not value.size:
        return None
    mask = inputs.get("attention_mask")
    real = value[: int(mask.sum())] if mask is not None and mask.shape == value.shape else value
    real = np.nan_to_num(np.asarray(real, np.float32))
    about = f"{len(value)} numbers, {value.min():.3g} to {value.max():.3g}"
    return Sound(real / max(float(np.abs(real).max(initial=0.0)), 1e-12), int(rate), about)


def _label(name: str, value: np.ndarray, tokenizer: Any, facts: Facts) -> View | None:
    """The name of a class, the names of several, a number, or tokens that are to be written."""
    names, whole = facts.labels, value.dtype.kind in "iu"
    if name != TARGET:
        return None
    if value.ndim == 0:
        number = value.item()
        named = whole and facts.problem != "regression" and 0 <= number < len(names)
        return Text(names[number] if named else "none" if whole and number == IGNORE else f"{number:.6g}")
    if value.ndim == 1 and value.dtype.kind in "fb" and len(names) == len(value):
        marked = [one for one, mark in zip(names, value, strict=True) if mark > 0.5]
        return Text(", ".join(marked) or "none")
    if tokenizer is not None and _is_row(value):
        wanted = [int(label) for label in value if label != IGNORE]
        return token_view(tokenizer, wanted, wanted)
    return None
