"""Check that a recipe's model fits its data.

For texts, this covers the tokenizer and its vocabulary, the mask token, conversations, packed documents, rows grouped
by length, and models with latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from ..models.accepted_configs import accepted_config
from ..models.check_model import accepted, check_model
from ..models.check_packing import check_packing
from ..models.heads import WRITERS
from ..models.model_config import ModelConfig, weights_folder
from ..models.vocabulary import too_few_embeddings
from ..trainer.component import Component, locate
from ..trainer.data.chat.media import IMAGE, KINDS, Kind
from ..trainer.data.check_data import heads_of_chats
from ..trainer.data.check_tokenizer import check_tokenizer
from ..trainer.data.data_config import DataConfig
from ..trainer.data.processor_folder import check_media_processor
from ..trainer.data.text_config import USUAL_COLLATOR as USUAL
from ..trainer.settings import TrainerConfig
from ..trainer.tasks.task import head_of, learns_from_rows, reads_texts, takes_chats

MEDIA: dict[str, tuple[Kind, ...]] = {"image_text_to_text": (IMAGE,), "multimodal_lm": KINDS}
"""Head of a task of chats -> the kinds of media that its messages may hold."""


def check_model_with_data(model: ModelConfig, data: DataConfig, task: Component) -> list[Problem]:
    found = check_model(model, data.block_size, head_of(task))
    return found or (_check_tokenizer(data, model) if reads_texts(task) else [])


def check_packed_rows(data: DataConfig, model: ModelConfig, task: Component, trainer: TrainerConfig) -> list[Problem]:
    """Problems of ``data.packing`` with ``data.group_by_length``, and with models that cannot keep documents apart."""
    from_rows = learns_from_rows(task) or data.chat is not None
    if data.group_by_length and (data.packing == "bins" or (data.packing and not from_rows)):
        why = f"has no effect with data.packing={data.packing}, whose rows all have the same length"
        return [Problem("data.group_by_length", why, "leave it out, or set data.packing=false", True)]
    if not data.separates:
        return []
    if from_rows and data.packing != "bins":
        why = "cuts blocks from joined documents, but this task learns from separate rows"
        return [Problem("data.packing", why, "set data.packing=bins, or false", data.packing)]
    try:
        return check_packing(model, head_of(task), data.packing, trainer.micro_batch_size)
    except UserError:  # a problem of the model, reported by its own check
        return []


def _check_tokenizer(data: DataConfig, model: ModelConfig) -> list[Problem]:
    """Problems of the named tokenizer, or of that beside the weights: it is missing, or too large for the model."""
    named = data.tokenizer.path
    if named is None and model.weights is None:
        return []
    folder = Path(named) if named is not None else weights_folder(model)
    field = "data.tokenizer.path" if named is not None else "model.weights"
    problems, tokens = check_tokenizer(str(folder), field)
    embeddings = getattr(accepted_config(model).get_text_config(), "vocab_size", None)
    if tokens is not None and embeddings is not None and tokens > embeddings and not model.resize_embeddings:
        problems.append(too_few_embeddings(embeddings, tokens, model.weights))
    return problems


def check_conversations(model: ModelConfig, data: DataConfig, task: Component) -> list[Problem]:
    """Problems of conversations: a task that cannot learn them, an unusable template, more tokens than embeddings."""
    if takes_chats(task) and head_of(task) in MEDIA:
        beside = weights_folder(model) if model.weights is not None else None
        template = data.chat.template if data.chat is not None else None
        if data.loader is not None:
            return []
        return check_media_processor(data.processor, beside, MEDIA[head_of(task)], template)
    if data.chat is None:
        return []
    if head_of(task) != "causal_lm" or (learns_from_rows(task) and not takes_chats(task)):
        why = "makes samples from conversations, but this task does not learn to write text"
        return [Problem("data.chat", why, "set task=causal_lm, or leave data.chat out")]
    from ..trainer.data.chat.check_chat import check_chat  # imported here, since it needs transformers

    weights = weights_folder(model) if model.weights is not None else None
    heads = {} if takes_chats(task) else heads_of_chats(data)
    problems, tokens = check_chat(data.chat, data.tokenizer, weights, data.block_size, heads)
    embeddings = getattr(accepted_config(model).get_text_config(), "vocab_size", None)
    if tokens is not None and embeddings is not None and tokens > embeddings and not model.resize_embeddings:
        problems.append(too_few_embeddings(embeddings, tokens, model.weights))
    return problems


def check_mask_token(task: Any, data: DataConfig, model: ModelConfig) -> list[Problem]:
    """The problem of a task that masks tokens, if the run will train a tokenizer that has no mask token."""
    kind, named = data.tokenizer.kind, data.tokenizer.path or model.weights or data.loader
    if not getattr(task, "masks", False) or named or kind == "wordpiece":
        return []
    fix = "set data.tokenizer.kind=wordpiece, or name a tokenizer with a mask token in data.tokenizer.path"
    return [Problem("data.tokenizer.kind", "has no mask token, but this task masks tokens", fix, kind)]


def check_latents(model: ModelConfig, task: Component, collator: Component | None, data: DataConfig) -> list[Problem]:
    """Problems of a model that predicts tokens at its last positions only: samples that are too short for a prefix, and
    collators that give labels to all positions."""
    needed, config = model.spec.collator, accepted(model)[0]
    if not needed or head_of(task) != "causal_lm" or config is None:
        return []
    latents = model.spec.latents(config)
    if latents is not None and data.block_size <= latents:
        why = f"leaves no prefix: the model's {latents} latents are a sample's last tokens, and need tokens before them"
        fix = f"use more than {latents}, or fewer latents (model.config.{model.spec.stacks[0].latents})"
        return [Problem("data.block_size", why, fix, data.block_size)]
    try:
        named = collator["_target_"] if collator else getattr(locate(task["_target_"]), "collator", USUAL)
        if named == USUAL and collator is None:  # the model's own collator is taken
            return []
        found = locate(named)
    except ImportError:  # reported by the check of components
        return []
    if isinstance(found, type) and issubclass(found, locate(needed)):
        return []
    why = f"gives labels for all positions, but {model.spec.title} predicts only at the last ones"
    fix = f"use collator=latents, or one that derives from {needed}"
    if collator is None:
        return [Problem("task", f"has a collator that {why}", "choose task=causal_lm", task["_target_"])]
    return [Problem("collator", why, fix, named)]


def check_vocabulary(data: DataConfig, model: ModelConfig, task: Component) -> list[Problem]:
    """The problem of a tokenizer to be trained whose vocabulary is larger than the model's."""
    if data.loader is not None:  # a loader of the user's own trains no tokenizer
        return []
    if not reads_texts(task) and head_of(task) not in ("ctc", *WRITERS):  # some models of images have a vocabulary
        return []
    tokenizer, size = data.tokenizer, model.config.get("vocab_size")
    if tokenizer.path is None and model.weights is None and isinstance(size, int) and tokenizer.vocab_size > size:
        return [
            Problem(
                "data.tokenizer.vocab_size",
                f"is larger than the model's vocabulary (model.config.vocab_size={size})",
                f"use at most {size}, or model.config.vocab_size={tokenizer.vocab_size}",
                tokenizer.vocab_size,
            )
        ]
    return []
