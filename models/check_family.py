"""Check that a user's own model class fits its ``ModelFamily``, which names the model's blocks, embeddings and heads:
the class must have these modules, and its ``forward`` must take the needed inputs.

The check runs before any rank starts. Without it, a wrong module path would be found late or never. For example, FSDP
would leave blocks unwrapped if their path did not exist.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import Problem, UserError
from .find_blocks import block_lists, blocks_of
from .model_config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

    from .family import Cut, ModelFamily, Stack, TensorPlan

FIX = "write a path of named_modules(); docs/extending.md has an example"
TENSOR_FIX = "every module of a block with parameters belongs into column, row, norms, key_value or per_head"


def check_family(config: ModelConfig, head: str) -> list[Problem]:
    """Problems of a model of the user's own: inputs that it does not take, and parts of its family that it lacks.

    Args:
        head: the output layer that the task asks for.
    """
    if not config.own:
        return []
    from .build_model import build_on_meta
    from .facts import Facts

    try:
        model = build_on_meta(config, head, Facts())
    except UserError as error:
        return [problem for problem in error.problems if isinstance(problem, Problem)]
    family, name = config.spec, type(model).__name__
    key, value = (
        ("model.family", config.family) if "." in str(config.family) else ("model.architecture", config.architecture)
    )
    if problems := [Problem(key, f"{name}.{why}", fix, value) for why, fix in _forward(model, family, head)]:
        return problems
    flaws = [
        *_stacks(model, family),
        *_paths(model, "embeddings", family.embeddings),
        *_paths(model, "heads", [path for task, path in family.heads if task == head]),
        *(_cut(model, family.cut) if family.cut and head == "causal_lm" else ()),
        *(_tensor(model, family, family.tensor) if family.tensor else ()),
    ]
    return [Problem(key, f"{what}, which {name} does not have", fix, value) for what, fix in flaws]


def _forward(model: nn.Module, family: ModelFamily, head: str) -> Iterator[tuple[str, str]]:
    """Inputs of texts, and those of pipeline stages, that ``forward`` does not take."""
    if head not in ("causal_lm", "masked_lm"):
        return
    signature = inspect.signature(model.forward)
    for name in ("input_ids", "attention_mask", *(("inputs_embeds", "use_cache") if family.cut else ())):
        try:
            signature.bind_partial(**{name: None})
        except TypeError:
            fix = "write def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, **others)"
            yield f"forward takes no {name}: it has {signature}", fix


def _stacks(model: Any, family: ModelFamily) -> Iterator[tuple[str, str]]:
    for stack in family.stacks:
        found = block_lists(model, _only(family, stack))
        if not any(len(list(blocks.children())) for _, blocks in found):
            yield f"names a list of blocks {stack.blocks}", FIX
        for field in filter(None, (stack.layers, stack.context)):
            if not hasattr(model.config, field):
                yield f"names the field {field} of the configuration", "write a field of it, or leave it out"


def _only(family: ModelFamily, stack: Stack) -> ModelFamily:
    from dataclasses import replace

    return replace(family, stacks=(stack,))


def _paths(model: nn.Module, part: str, paths: Any) -> Iterator[tuple[str, str]]:
    there = dict(model.named_modules())
    for path in paths:
        if path not in there:
            yield f"names {path} among its {part}", FIX


def _cut(model: nn.Module, cut: Cut) -> Iterator[tuple[str, str]]:
    paths = cut.embedding, cut.final_norm, cut.head, *(path for path, _ in cut.entry)
    yield from _paths(model, "parts of a cut", dict.fromkeys(paths))
    for path, attribute, _ in (*cut.first_stage_only, *cut.last_stage_only):
        owner: Any = model
        for name in filter(None, path.split(".")):
            owner = getattr(owner, name, None)
        if not hasattr(owner, attribute):
            yield f"names {path or 'the model'} with {attribute} in its cut", "write an attribute that is there"


def _tensor(model: Any, family: ModelFamily, plan: TensorPlan) -> Iterator[tuple[str, str]]:
    """Modules that the tensor plan names and no block has, and modules with parameters that it does not name."""
    split = (*plan.column, *plan.row, *plan.norms, *plan.key_value, *plan.per_head)
    blocks = [dict(block.named_modules()) for block in blocks_of(model, family)]
    for path in dict.fromkeys((*plan.inputs, *split)):
        if not any(path in block for block in blocks):
            yield f"names {path} in its tensor plan", TENSOR_FIX
    holding = {path for block in blocks for path, module in block.items() if module._parameters}
    for path in sorted(holding - set(split)):
        yield f"has a tensor plan for blocks without {path or 'parameters of their own'}", TENSOR_FIX
    for field, _ in plan.splits:
        if not hasattr(model.config, field):
            yield f"names the field {field} of the configuration in its tensor plan", "write a field of it"
