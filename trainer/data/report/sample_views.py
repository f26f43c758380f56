"""Show a collated sample in the report of ``trireme data``: texts, images, audio, labels and other numbers.

How an input is shown follows from its name in transformers. Each kind of input has one small function here. A
``Samples`` class may show its own samples in another way by its method ``views``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ....models.facts import Facts
from ....models.loss import IGNORE
from .image_views import class_map, denormalised, joined_patches, stretched
from .token_views import token_view
from .views import AudioView, Collated, ImageView, Text, View, numbers

MASKS = (
    *("attention_mask", "decoder_attention_mask", "pixel_mask", "token_type_ids", "mm_token_type_ids", "position_ids"),
    *("feature_attention_mask", "input_features_mask"),
)
"""Inputs that are not shown, since they only describe other inputs."""
TOKENS, TARGET, PADDING = "input_ids", "labels", "padding"
SHIFTED = ("causal_lm", "image_text_to_text", "multimodal_lm")
"""Heads whose labels stand at the positions that predict them, one before their tokens."""


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
            for part, mine in _documents(name, value, inputs, targets):
                of_part = [None if row is None else row[mine] for row in (labels, mask)]
                if part.endswith(PADDING):
                    of_part = [None, [0] * len(value[mine])]
                tokens, (labels_of, mask_of) = value[mine].tolist(), of_part
                found[part] = token_view(tokenizer, tokens, labels_of, sample.head in SHIFTED, mask_of, names)
        else:
            view = _image_view(name, value, processor) or _audio_view(name, value, inputs, processor)
            found[name] = view or numbers(value)
    for name, value in targets.items():
        if name != beside:
            found[name] = _label(name, value, tokenizer, facts) or numbers(value)
    return found


def _documents(
    name: str, tokens: np.ndarray, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, slice]]:
    """Names and places of the documents of a row of tokens, and of the padding behind them."""
    length, positions = len(tokens), inputs.get("position_ids")
    starts = [0] if name != TOKENS or positions is None else np.flatnonzero(positions == 0).tolist()
    if len(starts) < 2:
        yield name, slice(0, length)
        return
    last = slice(starts[-1], length)
    padded = len(set(tokens[last].tolist())) == 1 and (targets.get(TARGET, tokens)[last] == IGNORE).all()
    count = len(starts) - bool(padded)
    for number, (start, stop) in enumerate(pairwise([*starts, length]), start=1):
        what = f"document {number} of {count}" if number <= count else PADDING
        yield f"{name}, {what}", slice(start, stop)


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
    """Whether there is a label for each token that the model reads. The labels of a decoder are a separate text."""
    tokens, labels = inputs.get(TOKENS), targets.get(TARGET)
    if tokens is None or labels is None or sample.head == "seq2seq_lm" or "decoder_input_ids" in inputs:
        return False
    return _is_row(tokens) and _is_row(labels) and len(tokens) == len(labels)


def _image_view(name: str, value: np.ndarray, processor: Any) -> View | None:
    """An image, the first of several, or a spectrogram with time from left to right."""
    about = f"{' x '.join(map(str, value.shape))}, {value.min():.3g} to {value.max():.3g}" if value.size else ""
    first = value[0] if value.ndim == 4 and len(value) else value
    if name.endswith("pixel_values") and first.ndim == 3 and first.shape[0] in (1, 3, 4) and value.size:
        return ImageView(denormalised(first, getattr(processor, "image_processor", processor)), about)
    first = value[0] if value.ndim == 3 and len(value) == 1 else value
    if name.endswith("input_features") and first.ndim == 2 and first.size:
        bands = first.T if first.shape[0] > first.shape[1] else first  # some extractors put time first
        return ImageView(stretched(bands[::-1]), about)
    if name.endswith("flattened_patches") and value.ndim == 2 and (joined := joined_patches(value)) is not None:
        return ImageView(joined, about)
    return None


def _audio_view(name: str, value: np.ndarray, inputs: Mapping[str, np.ndarray], processor: Any) -> View | None:
    """A waveform without its padding, scaled to full volume, since feature extractors normalise its variance."""
    rate = getattr(getattr(processor, "feature_extractor", processor), "sampling_rate", None)
    if rate is None or value.ndim != 1 or value.dtype.kind != "f" or not value.size:
        return None
    mask = inputs.get("attention_mask")
    real = value[: int(mask.sum())] if mask is not None and mask.shape == value.shape else value
    real = np.nan_to_num(np.asarray(real, np.float32))
    about = f"{len(value)} numbers, {value.min():.3g} to {value.max():.3g}"
    return AudioView(real / max(float(np.abs(real).max(initial=0.0)), 1e-12), int(rate), about)


def _label(name: str, value: np.ndarray, tokenizer: Any, facts: Facts) -> View | None:
    """The name of a class, the names of several, a number, a map of classes, or tokens to be generated."""
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
    if value.ndim == 2 and whole and names and value.size:
        return class_map(value, names)
    if tokenizer is not None and _is_row(value):
        wanted = [int(label) for label in value if label != IGNORE]
        return token_view(tokenizer, wanted, wanted)
    return None
