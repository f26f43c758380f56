"""``ModelFamily``: a description of a model architecture, with the paths of its blocks, embeddings and heads, and how
to split it over ranks. Functions such as ``decoder`` make common descriptions, and ``families`` returns all.

Each file in ``models/families/`` holds one ``ModelFamily``. The architecture itself comes from ``transformers``. With
the paths, trireme can wrap a model in FSDP, cut it into pipeline stages and split it for tensor parallelism without
code for each model. This file does not import torch, so listing and checking families is fast.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

NOT_AT_RANDOM = (("apply_spec_augment", False),)
"""Configuration fields that switch off masks which transformers would draw differently on each rank."""


@dataclass(frozen=True)
class TensorPlan:
    """How one block is split over tensor ranks, as in Megatron-LM (https://arxiv.org/abs/1909.08053).

    Module paths are relative to a block. A path that a block does not have is skipped, because blocks of one model may
    differ. Every parameter of a block must belong to a module that is named here.
    """

    inputs: tuple[str, ...]
    """Modules at which hidden states enter the split part. Gradients of the hidden states are summed there; under
    sequence parallel the sequence is gathered there."""
    column: tuple[str, ...]
    """Modules whose outputs are split: each rank computes some heads, or some of the inner features. All parameters are
    split by their first dimension (the second of a weight in GPT-2's ``Conv1D``)."""
    row: tuple[str, ...]
    """Projections whose inputs are split. The ranks' partial outputs are summed, and the bias is added once."""
    norms: tuple[str, ...] = ()
    """Modules that see whole hidden states; under sequence parallel each rank runs them on its part of the sequence."""
    fused: tuple[tuple[str, int], ...] = ()
    """(path, parts) of column and row projections whose split dimension holds several matrices one after the other
    (query, then key, then value). Each rank holds a shard of every matrix."""
    per_head: tuple[str, ...] = ()
    """Modules applied to every head with the same weights. Each rank sees only its heads, so gradients are summed."""
    key_value: tuple[str, ...] = ()
    """Key and value projections with heads of their own. They are split like ``column``, but every rank keeps a single
    head whole."""
    key_value_heads: str | None = None
    """Configuration field with the number of key and value heads, if it may differ from the number of query heads."""
    groups: tuple[str, str] | None = None
    """(path, attribute) of the number of query heads per key head; it is divided where every rank keeps the single key
    head."""
    divided: tuple[tuple[str, str], ...] = ()
    """(path, attribute) of counts of heads or features that a module keeps; they are divided by the number of ranks."""
    splits: tuple[tuple[str, int], ...] = (("num_attention_heads", 1),)
    """(configuration field, unit) of sizes that are split. Each must be a multiple of unit x tensor ranks, or None if
    it follows from others."""
    gathered: tuple[str, ...] = ()
    """Column modules whose outputs every rank needs whole, such as those behind which a norm sees all heads."""
    scattered: tuple[str, ...] = ()
    """Row modules whose inputs are whole; each rank takes its part of them."""
    sizes: tuple[tuple[str, int], ...] = ()
    """(description, number) of further sizes, which must be multiples of the tensor ranks."""
    sequence_parallel: bool = True
    """Whether blocks may see a part of the sequence outside of their split parts."""
    whole_blocks: int = 0
    """How many of the first blocks see whole sequences also under sequence parallel, because they tell positions
    apart."""


@dataclass(frozen=True)
class Stack:
    """Equal blocks, one after the other. Blocks are the unit of wrapping, recompute, compile and pipeline cuts."""

    blocks: str
    """Path of the list of blocks; ``*`` stands for one part of a path (``encoder.stages.*.layers``)."""
    layers: str = "num_hidden_layers"
    """Configuration field with the number of blocks."""
    context: str = ""
    """Configuration field with the greatest sequence length; empty if there is no limit."""
    latents: str = ""
    """Configuration field with the number of last positions that go on behind the first block; empty if all do."""
    tensor: TensorPlan | None = None
    """How blocks are split over tensor ranks; None if there is no tensor parallelism for them yet."""


@dataclass(frozen=True)
class Cut:
    """How a model is cut into pipeline stages (``parallel/pipeline/cut.py``)."""

    embedding: str
    """Path of the token embedding."""
    final_norm: str
    """Path of the norm after the last block."""
    head: str
    """Path of the head."""
    entry: tuple[tuple[str, Literal["zero", "identity"]], ...] = ()
    """(path, replacement on later pipeline stages) of modules between the token embedding and the first block. A
    position embedding, which is added, is replaced by ``zero``; a dropout or norm of the embeddings by ``identity``."""
    first_stage_only: tuple[tuple[str, str, object], ...] = ()
    """(path, attribute, value on later pipeline stages) of numbers applied to embeddings, such as a normaliser."""
    last_stage_only: tuple[tuple[str, str, object], ...] = ()
    """(path, attribute, value on earlier pipeline stages) of settings applied to logits, such as a soft cap."""


@dataclass(frozen=True)
class Carried:
    """A tensor that a model carries along a text, from each segment to the next (``data.packing=lanes``).

    ``forward`` takes it by this name and the outputs have it by this name, a row for each text; zeros stand for the
    beginning of a text.
    """

    name: str
    sizes: tuple[str, ...] = ()
    """Configuration fields with its sizes for one text; none for a number."""
    whole: bool = False
    """Whether it holds whole numbers (int64)."""


@dataclass(frozen=True)
class ModelFamily:
    """Names of the parts of one architecture. Module paths are those of ``named_modules()``."""

    name: str
    """Name in recipes: ``model.family``."""
    title: str
    """Name in messages and tables."""
    model_type: str
    """``model_type`` of its transformers configuration."""
    paper: str
    """Address of the paper or page that describes the architecture."""
    stacks: tuple[Stack, ...]
    """Lists of blocks, in the order in which data passes them."""
    embeddings: tuple[str, ...] = ()
    """Paths of the embeddings of tokens."""
    heads: tuple[tuple[str, str], ...] = ()
    """(task, path) of output layers with a weight per token, which tensor ranks split and which may be tied to the
    embedding."""
    label_heads: tuple[str, ...] = ()
    """Tasks of the heads for labels that trireme's own classes have, beside those of ``heads``."""
    carried: tuple[Carried, ...] = ()
    """Memory that the model passes from each segment of a text to the next; empty if it has none."""
    cut: Cut | None = None
    """How the model is cut into pipeline stages; None if it runs under no pipeline."""
    attention: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2", "flex_attention")
    """Attention kernels that transformers offers for the family. The first is the default: the best one that needs no
    further package."""
    packs: bool | None = None
    """Whether a document in a packed row (``position_ids`` that restart, no mask) has the same outputs as alone. False
    is refused; if this is not known (None), it is tried with the model itself when training begins."""
    convolutions: tuple[tuple[str, str], ...] = ()
    """(module, child) of causal convolutions over a sequence, in modules of blocks that are called with
    ``position_ids``. They are made to read nothing of earlier documents."""
    mask_maker: str = ""
    """Path of a module that makes its causal mask without looking at positions; it is given one of packed rows."""
    mend: str = ""
    """Dotted path of a function that changes a built model in place, where transformers' classes are slow or wrong."""
    stored_names: tuple[tuple[str, str], ...] = ()
    """(name in published files, name in the model) of modules that were renamed since the weights were published."""
    unused: tuple[str, ...] = ()
    """Patterns of parameters that no loss reaches, such as a pooler; they are frozen when the model is built."""
    initial: tuple[tuple[str, float], ...] = ()
    """(pattern, value) of parameters that transformers leaves without a value when it draws initial weights."""
    fixed: tuple[tuple[str, Any], ...] = ()
    """(configuration field, value) that training needs, whatever the recipe says: (``apply_spec_augment``, False)."""
    untied: tuple[tuple[str, Any, str], ...] = ()
    """(configuration field, value, parameter) of parameters that transformers ties to the embedding, although the
    architecture has them apart where the field has this value."""
    smaller: tuple[tuple[str, str], ...] = ()
    """(parameter, configuration field) of parameters whose random values, as transformers draws them, are divided by
    the root of the field."""
    no_tensor: str = ""
    """Why there is no tensor plan, as a clause after the title; empty where nobody has written one yet."""
    fp16: str = ""
    """A clause on what goes wrong in fp16, as in "overflows in attention under fp16"; empty if no trouble is known."""
    classes: str = ""
    """Module of trireme whose import registers the family's classes with transformers; empty where it has them."""
    published: tuple[str, tuple[str, ...]] = ("", ())
    """Module that reads what another library has published of the architecture, by ``config(values)`` and
    ``name(stored)``, and the ``model_type``s in its config.json files."""
    collator: str = ""
    """Dotted path of the collator that next-token prediction needs; empty for the usual one."""
    config_extras: tuple[str, ...] = field(default=())
    """Keyword arguments that the configuration class takes beside its declared fields."""

    @property
    def tensor(self) -> TensorPlan | None:
        """The tensor plan of a model with one stack; None if a stack has none."""
        return self.stacks[0].tensor if len(self.stacks) == 1 else None

    def latents(self, config: Any) -> int | None:
        """The most positions of a sequence that go on to the blocks behind the first one; None if all do."""
        found = self.stacks[0].latents if self.stacks else ""
        return getattr(config, found) if found else None


def decoder(
    *,
    embedding: str,
    blocks: str,
    final_norm: str,
    head: str,
    context: str = "max_position_embeddings",
    layers: str = "num_hidden_layers",
    entry: tuple[tuple[str, Literal["zero", "identity"]], ...] = (),
    first_stage_only: tuple[tuple[str, str, object], ...] = (),
    last_stage_only: tuple[tuple[str, str, object], ...] = (),
    tensor: TensorPlan | None = None,
    **others: Any,
) -> ModelFamily:
    """The family of a causal language model: a token embedding, one stack of blocks, a norm and a head.

    Args:
        others: fields of ``ModelFamily``.
    """
    return ModelFamily(
        stacks=(Stack(blocks, layers, context, tensor=tensor),),
        embeddings=(embedding,),
        heads=(("causal_lm", head),),
        cut=Cut(embedding, final_norm, head, entry, first_stage_only, last_stage_only),
        **others,
    )


def encoder(
    *,
    embedding: str,
    blocks: str,
    head: str,
    context: str = "max_position_embeddings",
    layers: str = "num_hidden_layers",
    tensor: TensorPlan | None = None,
    **others: Any,
) -> ModelFamily:
    """The family of an encoder of text: a token embedding and one stack of blocks that see the whole text.

    Args:
        head: path of the output layer of masked language modelling.
        others: fields of ``ModelFamily``.
    """
    return ModelFamily(
        stacks=(Stack(blocks, layers, context, tensor=tensor),),
        embeddings=(embedding,),
        heads=(("masked_lm", head),),
        **others,
    )


def encoder_decoder(
    *,
    embeddings: tuple[str, ...],
    encoder_blocks: str,
    decoder_blocks: str,
    head: str,
    encoder_layers: str = "encoder_layers",
    decoder_layers: str = "decoder_layers",
    context: str = "",
    **others: Any,
) -> ModelFamily:
    """The family of a model that reads one sequence and writes another.

    Args:
        head: path of the output layer over tokens.
        others: fields of ``ModelFamily``.
    """
    return ModelFamily(
        stacks=(
            Stack(encoder_blocks, encoder_layers, context),
            Stack(decoder_blocks, decoder_layers, context),
        ),
        embeddings=embeddings,
        heads=(("seq2seq_lm", head),),
        **others,
    )


def vision(*, blocks: str, layers: str = "num_hidden_layers", **others: Any) -> ModelFamily:
    """The family of a model of images: one stack of blocks (or one per stage) over patches.

    Args:
        others: fields of ``ModelFamily``.
    """
    return ModelFamily(stacks=(Stack(blocks, layers),), **others)


def speech(*, blocks: str, layers: str = "num_hidden_layers", **others: Any) -> ModelFamily:
    """The family of a model of audio: convolutions over a waveform, and one stack of blocks over their frames.

    Spans of frames that transformers drops at random are not dropped: it draws them from generators that depend on the
    rank. Collators mask the audio clip instead.

    Args:
        others: fields of ``ModelFamily``.
    """
    return ModelFamily(
        stacks=(Stack(blocks, layers),),
        fixed=NOT_AT_RANDOM,
        unused=("*masked_spec_embed",),
        **others,
    )


@cache
def families() -> dict[str, ModelFamily]:
    """All families by name; every module of ``models/families`` defines ``FAMILY``."""
    from . import families as package

    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    return {module.FAMILY.name: module.FAMILY for module in sorted(modules, key=lambda module: module.__name__)}
