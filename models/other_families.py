"""Family descriptions for transformers architectures without a file in ``models/families``, and for users' own classes.
Also name the architectures that transformers is known to compute wrongly.

The list of blocks, the embeddings and the head are read from the built model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from .family import NOT_AT_RANDOM, ModelFamily, Stack, families

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

AUTO = "auto"
"""``model.family`` that takes any architecture of transformers, by its ``model_type``."""
TEMPERATURE = math.log(1 / 0.07)
"""First logarithm of the inverse temperature of dual encoders (CLIP, https://arxiv.org/abs/2103.00020, section 2.5)."""
WRONG = {
    "mra": "without its CUDA kernel its attention silently gives zeros",
    "cpmant": "its language model is not causal: a token sees those that it is to predict",
}
"""Architectures whose class in transformers computes something else than its paper, with the reason."""


def wrong_parts(config: Any, path: str = "config", without: str = "") -> Iterator[tuple[str, str]]:
    """(field, architecture) of every part of a configuration, itself included, whose architecture is in ``WRONG``.

    Args:
        without: family of the whole model; where it mends the class, the whole is right.
    """
    if isinstance(config, Mapping):
        kind, family = config.get("model_type"), families().get(without)
        mended = family is not None and bool(family.mend) and family.model_type == kind
        if isinstance(kind, str) and kind in WRONG and not mended:
            yield f"{path}.model_type", kind
        for name, part in config.items():
            yield from wrong_parts(part, f"{path}.{name}")


@cache
def other_family(model_type: str) -> ModelFamily:
    """The family of an architecture, as far as it is known before a model is built."""
    return ModelFamily(
        name=AUTO,
        title=_title(model_type),
        model_type=model_type,
        paper=f"https://huggingface.co/docs/transformers/model_doc/{model_type}",
        stacks=(),
        attention=("sdpa", "eager", "flash_attention_2", "flex_attention"),
        initial=(("*logit_scale*", TEMPERATURE),),
        fixed=NOT_AT_RANDOM,
        unused=("*masked_spec_embed", "*logit_bias"),
    )


def model_types() -> set[str]:
    """Every ``model_type`` that transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return set(CONFIG_MAPPING_NAMES)


def described(family: ModelFamily, model: PreTrainedModel) -> ModelFamily:
    """``family`` with the parts of ``model``, if its file does not name them."""
    if family.stacks:
        return family
    from .upstream_plan import upstream_plan

    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = _module(model, "get_input_embeddings"), _module(model, "get_output_embeddings")
    found = dataclasses.replace(
        family,
        stacks=tuple(Stack(path) for path in _lists(model)),
        embeddings=tuple(names[id(embedding)] for _ in [0] if _holds_tokens(embedding) and id(embedding) in names),
        heads=tuple(("", names[id(head)]) for _ in [0] if head is not None and id(head) in names),
    )
    plan, reason = upstream_plan(model, found)
    if plan is None:
        return dataclasses.replace(found, no_tensor=reason)
    return dataclasses.replace(found, stacks=(dataclasses.replace(found.stacks[0], tensor=plan),))


def _lists(model: nn.Module) -> list[str]:
    """Paths of the outermost lists of blocks: those that hold more than a tenth of the largest one's parameters."""
    from torch import nn
    from torch.nn.utils import parametrize

    sizes: dict[str, int] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in sizes)
        if inside or not isinstance(module, nn.ModuleList) or isinstance(module, parametrize.ParametrizationList):
            continue
        if len(module):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size:
                sizes[path] = size
    most = max(sizes.values(), default=0)
    return [path for path, size in sizes.items() if 10 * size >= most]


def _module(model: PreTrainedModel, accessor: str) -> Any:
    try:
        return getattr(model, accessor)()
    except (AttributeError, NotImplementedError):  # models of images and of speech have none
        return None


def _holds_tokens(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Embedding)


def _title(model_type: str) -> str:
    return " ".join(part.capitalize() for part in model_type.replace("-", "_").split("_"))
