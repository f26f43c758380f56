"""Architectures of transformers for which trireme has no family file are built with the right blocks, inputs and
initial values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families.tiny_config import tiny_config
from torch import nn
from trireme.errors import UserError
from trireme.models.build_model import build_on_meta, weight_source
from trireme.models.facts import Facts
from trireme.models.find_blocks import blocks_of
from trireme.models.forward_inputs import forward_inputs
from trireme.models.model_config import ModelConfig, hf_config
from trireme.models.other_families import described
from trireme.models.vocabulary import Vocabulary, decoder_start

LABELS = Facts(None, ("a", "b"), "single_label_classification")


def built(model_type: str, head: str, facts: Facts, **fields: Any) -> Any:
    model = ModelConfig("auto", {"model_type": model_type, **tiny_config(model_type), **fields})
    return model, build_on_meta(model, head, facts)


def test_blocks_in_lists_of_stages_are_found() -> None:
    model, pvt = built("pvt", "image_classification", LABELS)
    blocks = blocks_of(pvt, described(model.spec, pvt))
    assert len(blocks) == 8 and not any(isinstance(block, nn.ModuleList) for block in blocks)


def test_parametrised_weights_are_no_blocks() -> None:
    model, hubert = built("hubert", "ctc", Facts(Vocabulary(32, None, None, 0)))
    assert not any("parametrizations" in stack.blocks for stack in described(model.spec, hubert).stacks)


@pytest.mark.parametrize("model_type", ["data2vec-audio", "speech-encoder-decoder"])
def test_spans_that_a_model_masks_are_off_in_every_part(model_type: str) -> None:
    head = "ctc" if model_type == "data2vec-audio" else "speech_seq2seq"
    _, model = built(model_type, head, Facts(Vocabulary(32, None, 1, 0)))
    part = getattr(model.config, "encoder", model.config)
    assert part.mask_time_prob > 0 and part.apply_spec_augment is False


def test_parameters_without_a_rule_are_those_of_the_constructor() -> None:
    model, yolos = built("yolos", "object_detection", LABELS)
    names = {"vit.embeddings.cls_token", "vit.embeddings.detection_tokens"}
    found = dict(weight_source(model, yolos, 7)(names))
    assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in found.values()) and set(found) == names


def test_a_factory_of_several_classes_takes_the_plain_one() -> None:
    assert type(built("deit", "image_classification", LABELS)[1]).__name__ == "DeiTForImageClassification"


def test_a_class_with_several_heads_serves_one_of_them() -> None:
    vocabulary = Facts(Vocabulary(512, None, 3, 0))
    assert type(built("visual_bert", "masked_lm", vocabulary)[1]).__name__ == "VisualBertForPreTraining"
    for other in (
        "wav2vec2-conformer",
        "ctrl",
        "idefics",
    ):  # whose class for pre-training has no head for masked tokens
        with pytest.raises(UserError, match="does not have for"):
            built(other, "masked_lm", vocabulary)


def test_inputs_that_a_model_names() -> None:
    fnet = hf_config(ModelConfig("auto", {"model_type": "fnet", **tiny_config("fnet")}))
    assert "attention_mask" not in (forward_inputs(fnet, "sequence_classification") or ())
    distilbert = hf_config(ModelConfig("auto", {"model_type": "distilbert", **tiny_config("distilbert")}))
    assert "token_type_ids" not in (forward_inputs(distilbert, "sequence_classification") or ())


def test_a_start_beyond_the_vocabulary_is_no_start() -> None:
    whisper = hf_config(ModelConfig("auto", {"model_type": "whisper", **tiny_config("whisper")}))
    assert whisper.decoder_start_token_id == 50257
    assert decoder_start(whisper, Vocabulary(512, 5, 3, 0)) == 5


def test_weights_of_a_model_without_a_vocabulary_are_built(tmp_path: Path) -> None:
    """CANINE reads code points, and has no vocab_size."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "canine", **tiny_config("canine")}))
    model = ModelConfig(weights=str(tmp_path))
    canine = build_on_meta(model, "sequence_classification", Facts(Vocabulary(64, None, 3, 0), ("a", "b")))
    assert canine.config.eos_token_id == 3 and canine.config.num_labels == 2


def test_an_activation_with_parameters_begins_as_its_constructor_says() -> None:
    model, apertus = built("apertus", "causal_lm", Facts(Vocabulary(512, None, 3, 0)))
    name = "model.layers.0.mlp.act_fn.alpha_p"
    assert dict(weight_source(model, apertus, 7)({name}))[name].isfinite().all()
