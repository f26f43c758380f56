"""Choose which tensors of another tool's checkpoint are exported: those that the ``transformers`` model class loads.

Other tools may save tied parameters under each of their names, and also buffers that are computed when a model is
built. ``transformers`` loads tied tensors once and never loads non-persistent buffers; it would warn about the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ....errors import Problem, UserError
from ....models.register_classes import register_classes
from ..source import Source


def known_weights(source: Source, assets: Path, base: str | None = None) -> dict[str, str] | None:
    """The tensors that the model described in ``assets`` loads: name to write -> name in ``source``.

    None if transformers does not have the model's class; then all tensors are exported.

    Args:
        base: base of adapters that the user has named.

    Raises:
        UserError: a tensor of the model is missing, or has another shape.
        ValueError: ``source`` cannot be read.
    """
    model = _on_meta(assets)
    if model is None:
        return None
    source.fit(model)
    shapes = {n.removeprefix("model."): shape for n, (shape, _) in source.shapes.items() if n.startswith("model.")}
    tied: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}
    found = {name: _stored_name(name, tied, shapes) for name in wanted}
    missing = [name for name, stored in found.items() if stored is None]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        if base is not None:
            raise UserError(_other_base(base, f"it lacks {listed}"))
        raise UserError(Problem("CHECKPOINT", f"lacks {len(missing)} tensors of the model: {listed}", _fix(assets)))
    kept = {name: stored for name, stored in found.items() if stored is not None}
    for name, stored in kept.items():
        if shapes[stored] != wanted[name]:
            why = f"{stored} has shape {tuple(shapes[stored])}, the model has {tuple(wanted[name])}"
            raise UserError(_other_base(base, why) if base is not None else Problem("CHECKPOINT", why, _fix(assets)))
    return kept


def _stored_name(name: str, tied: dict[str, str], shapes: dict[str, torch.Size]) -> str | None:
    """The name under which a tensor is stored: ``name``, or one that is tied to it; None if it is not stored."""
    return next((key for key in (name, *(t for t, s in tied.items() if s == name)) if key in shapes), None)


def _other_base(base: str, why: str) -> Problem:
    fix = "name the base that they were trained on; without --base, it is the recipe's"
    return Problem("--base", f"is another model than that of the adapters: {why}", fix, base)


def _fix(assets: Path) -> str:
    return f"name the folder of this model's config.json with --config ({assets} was used)"


def model_class(folder: Path) -> tuple[Any, Any]:
    """The configuration in ``folder`` and its model class; each is None if transformers does not have it.

    A config.json that was saved without its model names no class; then a model for text generation is taken.
    """
    import transformers

    register_classes()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except ValueError:  # this version of transformers does not have the model type
        return None, None
    writing = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if config.architectures and getattr(writing, "__name__", None) != config.architectures[0]:
        return config, getattr(transformers, config.architectures[0], None)
    return config, writing


def _on_meta(assets: Path) -> Any:
    config, built = model_class(assets)
    if built is None:
        return None
    with torch.device("meta"):
        return built._from_config(config)
