"""Choose the task, data and processor with which ``make families`` tests an architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from families.tiny_config import TWO_PARTS, tiny_config
from helpers.recipes import FEW_FILES
from trireme.models.forward_inputs import factory_of
from trireme.models.heads import HEADS

SOURCES = "families.small_data."
TEXTS = {"source": {"_target_": "trireme.trainer.data.sources.PythonSources", "roots": FEW_FILES}, "held_out": 0.1}


@dataclass(frozen=True)
class Kind:
    """The settings with which architectures of one shape are tested."""

    shape: str
    """Input and output of the models, for the table."""
    task: str
    data: dict[str, Any]
    processor: tuple[str, ...] = ("AutoTokenizer",)
    """Auto classes of transformers that load the processors from an exported folder."""
    others: dict[str, Any] = field(default_factory=dict)
    """Further top-level keys of the recipe."""
    model: dict[str, Any] = field(default_factory=dict)
    """Further fields under ``model`` in the recipe."""


def _rows(source: str, **others: Any) -> dict[str, Any]:
    return {"source": {"_target_": SOURCES + source}, "held_out": 0.1, "block_size": 32, **others}


def _tokens(kind: str, vocab_size: int = 512) -> dict[str, Any]:
    return {"kind": kind, "vocab_size": vocab_size}


SPEECH = {"sampling_rate": 16000, "tokenizer": _tokens("characters", 32)}
KINDS = {
    "causal_lm": Kind("text", "causal_lm", {**TEXTS, "block_size": 32, "tokenizer": _tokens("bpe")}),
    "masked_lm": Kind("text", "masked_lm", {**TEXTS, "block_size": 32, "tokenizer": _tokens("wordpiece")}),
    "seq2seq_lm": Kind("text to text", "seq2seq_lm", _rows("TranslatedMonths", tokenizer=_tokens("unigram"))),
    "sequence_classification": Kind(
        "text to label", "sequence_classification", _rows("LabelledLines", tokenizer=_tokens("wordpiece"))
    ),
    "image_classification": Kind(
        "image to label",
        "image_classification",
        {"source": {"_target_": "trireme.trainer.data.digits.Digits"}, "held_out": 0.2, "image_size": 32},
        ("AutoImageProcessor",),
        {"collator": {"_target_": "trireme.trainer.data.image_collator.ImageCollator", "crop_padding": 2, "flip": 0.5}},
    ),
    "semantic_segmentation": Kind(
        "image to map", "semantic_segmentation", _rows("MappedDigits", image_size=32), ("AutoImageProcessor",)
    ),
    "object_detection": Kind(
        "image to boxes", "object_detection", _rows("BoxedDigits", image_size=32), ("AutoImageProcessor",)
    ),
    "image_text_to_text": Kind(
        "image to text",
        "image_to_text",
        _rows("CaptionedDigits", image_size=32, tokenizer=_tokens("wordpiece")),
        ("AutoTokenizer", "AutoImageProcessor"),
    ),
    "masked_captions": Kind(
        "image and text",
        "masked_captions",
        _rows("CaptionedDigits", image_size=32, tokenizer=_tokens("wordpiece")),
        ("AutoTokenizer", "AutoImageProcessor"),
    ),
    "contrastive": Kind(
        "image and text",
        "contrastive",
        _rows("CaptionedDigits", image_size=32, tokenizer=_tokens("wordpiece")),
        ("AutoTokenizer", "AutoImageProcessor"),
    ),
    "audio_contrastive": Kind(
        "audio and text",
        "audio_contrastive",
        _rows("SpokenDigits", sampling_rate=16000, tokenizer=_tokens("wordpiece")),
        ("AutoTokenizer", "AutoFeatureExtractor"),
    ),
    "ctc": Kind("speech to text", "ctc", _rows("SpokenDigits", **SPEECH), ("AutoTokenizer", "AutoFeatureExtractor")),
    "speech_seq2seq": Kind(
        "speech to text",
        "speech_seq2seq",
        _rows("SpokenDigits", **{**SPEECH, "tokenizer": _tokens("wordpiece")}),
        ("AutoTokenizer", "AutoFeatureExtractor"),
    ),
    "audio_classification": Kind(
        "audio to label", "audio_classification", _rows("SpokenDigits", sampling_rate=16000), ("AutoFeatureExtractor",)
    ),
}
"""Head (or contrastive loss of two encoders) -> its test settings; ``ORDER`` decides between several."""
ORDER = (
    *("contrastive", "audio_contrastive", "speech_seq2seq", "ctc", "seq2seq_lm", "masked_lm", "image_classification"),
    *("semantic_segmentation", "object_detection", "causal_lm", "image_text_to_text", "audio_classification"),
    *("sequence_classification",),
)


BY_CLASS = {"bridgetower": ("masked_captions", "transformers.BridgeTowerForMaskedLM")}
"""Architecture whose head no Auto class has -> its key in ``KINDS``, and its class for ``model.architecture``."""


def kind_of(model_type: str) -> Kind:
    """The first kind in ``ORDER`` whose head transformers has for the architecture.

    Raises:
        LookupError: it has none.
    """
    from transformers import CONFIG_MAPPING

    if model_type in BY_CLASS:
        return KINDS[BY_CLASS[model_type][0]]
    cls = CONFIG_MAPPING[model_type]
    for name in ORDER:
        if name in HEADS and factory_of(cls, name):
            return KINDS[name]
        if name not in HEADS and _is_contrastive(cls, "audio_config" if name.startswith("audio") else "vision_config"):
            return KINDS[name]
    raise LookupError(f"{model_type} has none of the heads {', '.join(ORDER)}")


def _is_contrastive(cls: Any, other: str) -> bool:
    """Whether a loss compares features of texts and of ``other``: the configuration has both and a temperature."""
    fields = set(cls.__dataclass_fields__) | set(TWO_PARTS.get(cls.model_type, {}))
    return {"text_config", other} <= fields and "logit_scale_init_value" in fields | _unlisted_fields(cls)


def _unlisted_fields(cls: Any) -> set[str]:
    """The temperature of models whose configuration class does not list it as a field."""
    return {"logit_scale_init_value"} if cls.model_type in ("vision-text-dual-encoder", "siglip") else set()


def recipe(model_type: str, steps: int, saved: int) -> dict[str, Any]:
    """The recipe with which an architecture is tested."""
    kind = kind_of(model_type)
    config = tiny_config(model_type)
    size = {"image_size": config["image_size"]} if isinstance(config.get("image_size"), int) else {}
    model = {"family": "auto", "frozen_batchnorm": True, "config": {"model_type": model_type, **config}}
    if model_type in BY_CLASS:
        model = {"architecture": BY_CLASS[model_type][1], "config": config}
    return {
        "defaults": [
            "/base",
            {"override /task": kind.task},
            {"override /callbacks": "minimal"},
            {"override /scheduler": "constant"},
            "_self_",
        ],
        "seed": 7,
        "model": {**model, **kind.model},
        "data": {**kind.data, **(size if "image_size" in kind.data else {})},
        "optimizer": {"lr": 1e-3},
        "trainer": {
            "max_steps": steps,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "eval_samples": 8,
            "eval_at_end": False,
            "log_every": 1,
        },
        "checkpoint": {"every": saved, "keep_last": None},
        **kind.others,
    }
