"""Convert the tensor-parallel plan that transformers has for a model into one of trireme, for architectures that
trireme itself does not describe.

transformers stores its plan in ``base_model_tp_plan`` of the configuration: a style for each linear layer of a block.
The styles do not tell where hidden states enter the split layers, so every projection is taken as an entry. A module
without a style keeps whole weights, unless it lies inside a module with split layers, such as the attention. In that
case the plan is refused, because the split would be a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .family import TensorPlan
from .find_blocks import block_lists

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from .family import ModelFamily

COLUMN, ROW = "colwise", "rowwise"
GATHERED, SCATTERED = "colwise_gather_output", "rowwise_split_input"
PER_HEAD = "replicated_with_grad_allreduce"
STYLES = (COLUMN, ROW, GATHERED, SCATTERED, PER_HEAD)
"""Styles of transformers that are understood, for modules inside of blocks."""
OUTSIDE = ("embedding_rowwise", GATHERED)
"""Styles of embedding and head, whose vocabulary is split in any case."""
HEADS, KEY_VALUE_HEADS, GROUPS = "num_attention_heads", "num_key_value_heads", "num_key_value_groups"


def upstream_plan(model: PreTrainedModel, family: ModelFamily) -> tuple[TensorPlan | None, str]:
    """The tensor plan of ``model``, or None and the reason why it has none, as a clause after the name of the model.

    Args:
        family: the description of ``model``, which names its blocks and heads.
    """
    styles = getattr(model.config, "base_model_tp_plan", None)
    lists = block_lists(model, family)
    if not styles:
        return None, "has no tensor plan in transformers"
    if len(lists) != 1:
        return None, f"has {len(lists)} lists of blocks, and only a plan for a single list is understood"
    path, blocks = lists[0]
    inside = _inside(model, path, styles)
    every = [dict(block.named_modules()) for block in blocks.children()]
    reasons = [
        reason for found in every for reason in (*_unknown_styles(inside, found), *_unclear_modules(inside, found))
    ]
    reasons += _unknown_styles_outside(model, family, styles)
    if reasons:
        return None, reasons[0]
    return _plan(model, inside, {name: module for found in every for name, module in found.items()}), ""


def _inside(model: PreTrainedModel, path: str, styles: dict[str, str]) -> dict[str, str]:
    """Style of each module of a block, by its path in the block, in which ``*`` stands for a number."""
    base = next((name for name, module in model.named_modules() if module is model.base_model), "")
    prefix = path.removeprefix(f"{base}." if base else "") + ".*."
    return {name.removeprefix(prefix): style for name, style in styles.items() if name.startswith(prefix)}


def _style(inside: dict[str, str], path: str) -> str | None:
    return inside.get(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path))


def _unknown_styles(inside: dict[str, str], found: dict[str, nn.Module]) -> Iterator[str]:
    """Modules and parameters of a block with styles that are not understood, or that no linear layer has."""
    there = {*found, *(f"{path}.{name}" for path, module in found.items() for name, _ in _own(module))}
    for path in sorted(there):
        style = _style(inside, path)
        if style is None:
            continue
        if style not in STYLES or path not in found:
            yield f"has {path} in its blocks, which transformers splits in an unsupported style ({style})"
        elif style != PER_HEAD and not _is_linear(found[path]):
            yield f"has {path} in its blocks, a {type(found[path]).__name__}, but only plain linear layers can be split"


def _unclear_modules(inside: dict[str, str], found: dict[str, nn.Module]) -> Iterator[str]:
    """Modules with parameters among split ones, of which transformers does not say how they are split."""
    around = {ancestor for path in found if _style(inside, path) in (COLUMN, ROW) for ancestor in _ancestors(path)}
    for path, module in found.items():
        if _style(inside, path) is None and _own(module) and around & {path, *_ancestors(path)}:
            what = path or "the block's own parameters"
            yield f"has {what} between modules that are split, but transformers does not say how to split {what}"


def _unknown_styles_outside(model: PreTrainedModel, family: ModelFamily, styles: dict[str, str]) -> Iterator[str]:
    for name, _ in model.base_model.named_modules():
        if styles.get(name, OUTSIDE[0]) not in OUTSIDE:
            yield f"has {name} outside of its blocks, split in an unsupported style ({styles[name]})"
    for _, path in family.heads:
        if not _is_linear(model.get_submodule(path)):
            yield f"has the head {path}, but only plain linear layers can be split"


def _is_linear(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _plan(model: PreTrainedModel, inside: dict[str, str], found: dict[str, nn.Module]) -> TensorPlan:
    by_style = {style: [path for path in found if _style(inside, path) == style] for style in STYLES}
    config = model.config.get_text_config()
    grouped = isinstance(getattr(config, KEY_VALUE_HEADS, None), int)
    key_value = [path for path in by_style[COLUMN] if grouped and path.endswith((".k_proj", ".v_proj"))]
    column = [path for path in by_style[COLUMN] if path not in key_value]
    parents = sorted({path.rpartition(".")[0] for path in key_value})
    groups = [(parent, GROUPS) for parent in parents if hasattr(found[parent], GROUPS)]
    named = {path for paths in by_style.values() for path in paths}
    return TensorPlan(
        inputs=(*by_style[COLUMN], *by_style[GATHERED]),
        column=(*column, *by_style[GATHERED]),
        row=(*by_style[ROW], *by_style[SCATTERED]),
        norms=tuple(path for path, module in found.items() if path not in named and _own(module)),
        per_head=tuple(by_style[PER_HEAD]),
        key_value=tuple(key_value),
        key_value_heads=KEY_VALUE_HEADS if key_value else None,
        groups=groups[0] if groups else None,
        gathered=tuple(by_style[GATHERED]),
        scattered=tuple(by_style[SCATTERED]),
        splits=(),
        sizes=tuple(_sizes(config, found, column, by_style)),
        sequence_parallel=False,
    )


def _sizes(
    config: object, found: dict[str, nn.Module], column: list[str], by_style: dict[str, list[str]]
) -> Iterator[tuple[str, int]]:
    """(name, number) of everything that ranks must share evenly."""
    whole_heads = [path for path in column if hasattr(found[path.rpartition(".")[0]], "head_dim")]
    heads = getattr(config, HEADS, None)
    if whole_heads and isinstance(heads, int):
        yield HEADS, heads
    for path in (*column, *by_style[GATHERED]):
        yield f"the outputs of {path}", int(found[path].out_features)  # type: ignore[arg-type]
    for path in (*by_style[ROW], *by_style[SCATTERED]):
        yield f"the inputs of {path}", int(found[path].in_features)  # type: ignore[arg-type]


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _ancestors(path: str) -> set[str]:
    """Paths of the modules around a module of a block; the block itself only if it holds the module directly."""
    parts = path.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))} or {""}
