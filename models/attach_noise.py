"""Make a model's dropout layers and other random modules draw from ``Noise``, trireme's source of reproducible random
numbers. This can also be undone.

``Noise`` (``noise.py``) computes masks that are the same under every parallelism plan, and must know which module is
running.

A module is chosen if its own code or a dropout layer in it draws random numbers; blocks are always chosen. A chosen
module's class is replaced by a subclass that tells ``Noise`` when the forward pass begins and ends, and that numbers
the module's draws. Parameters and names stay the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .family import ModelFamily
from .find_blocks import block_lists, blocks_of
from .find_random_calls import random_parts
from .neftune import add_neftune
from .noise import Noise, Site
from .noise_hash import text_key
from .noise_keys import Part
from .noise_layers import drop_path, skip_samples
from .noise_report import is_drop_path, rank_notes

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
TIME_FIRST = ("xlnet", "fsmt")
"""Types of models whose hidden states are [length, samples, features]."""


class KeyedModule:
    """Attributes that a chosen module has in addition to its own."""

    noise: Noise
    noise_site: Site
    noise_skip: float
    """Share of the samples that skip the module."""


def add_noise(model: nn.Module, family: ModelFamily, noise: Noise, parts: dict[nn.Module, Part] | None = None) -> None:
    """Let the modules of ``model``, a whole model or a pipeline stage of it, draw from ``noise``.

    Args:
        parts: what tensor ranks hold of the hidden states that a module sees.
    """
    parts = parts or {}
    skips = _layer_drop(model, family)
    sites = {*_sites(model), *blocks_of(model, family)}
    noise.time_first = getattr(getattr(model, "config", None), "model_type", "") in TIME_FIRST
    for name, module in model.named_modules():
        if module in sites or module in skips or _drops(module):
            site = Site(name, torch.tensor(text_key(name), dtype=torch.int32, device="cpu"), parts.get(module))
            _connect(module, noise, site, skips.get(module, 0.0))
    if noise.neftune_alpha:
        add_neftune(model, family, noise)
    noise.notes += [note for note in rank_notes(model) if note not in noise.notes]


def remove_noise(model: nn.Module) -> None:
    """Give every module its own class back, and take the noise off the embeddings."""
    for module in model.modules():
        if KeyedModule in type(module).__bases__:
            module.__class__ = type(module).__bases__[0]
            for name in ("noise", "noise_site", "noise_skip"):
                del module.__dict__[name]
        elif isinstance(module, KeyedModule):  # FSDP has made a subclass of the class, which it needs
            module.__dict__["noise"] = Noise()
        hook = module.__dict__.pop("neftune_hook", None)
        if hook is not None:
            hook.remove()


def _sites(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, (*CONTAINERS, *DROPOUTS)):
            continue  # draws of containers are those of the module that holds them
        if is_drop_path(module) or _holds_dropout(module) or random_parts(type(module)).dropout:
            yield module


def _holds_dropout(module: nn.Module) -> bool:
    return any(
        _drops(child) or (isinstance(child, CONTAINERS) and _holds_dropout(child)) for child in module.children()
    )


def _drops(module: nn.Module) -> bool:
    return isinstance(module, DROPOUTS) and module.p > 0


def _layer_drop(model: nn.Module, family: ModelFamily) -> dict[nn.Module, float]:
    """Blocks that some samples skip, with their share; transformers' own way of dropping them is switched off."""
    found: dict[nn.Module, float] = {}
    config = getattr(model, "config", None)
    for path, blocks in block_lists(model, family):
        owner = model.get_submodule(path.rpartition(".")[0])
        share = getattr(owner, "layerdrop", None)
        if share is None and random_parts(type(owner)).layer_drop:
            share = getattr(getattr(owner, "config", config), "layerdrop", None)
        if share:
            found |= {block: float(share) for block in blocks.children()}
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            if isinstance(getattr(holder, "layerdrop", None), float):
                holder.layerdrop = 0.0  # type: ignore[union-attr]
    return found


def _connect(module: nn.Module, noise: Noise, site: Site, skip: float) -> None:
    values = {"noise": noise, "noise_site": site, "noise_skip": skip}
    module.__dict__.update(values)  # nn.Module would look at each for parameters
    forward = _path_forward if is_drop_path(module) else _dropout_forward if _drops(module) else _site_forward
    module.__class__ = _keyed_class(type(module), forward)


@functools.cache
def _keyed_class(kind: type, how: Callable[[type], Any]) -> type:
    forward = how(kind)
    names = {"forward": functools.wraps(kind.forward)(forward), "__module__": kind.__module__}
    return type(kind.__name__, (kind, KeyedModule), names | {"__qualname__": kind.__qualname__})


def _site_forward(kind: Any) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        noise, site = self.noise, self.noise_site
        if noise.keys is None or not self.training:
            return kind.forward(self, *args, **kwargs)
        before = noise.site, noise.number, noise.visit
        noise.site, noise.number, noise.visit = site, 0, 0
        if not torch.compiler.is_compiling():
            noise.visit = noise.keys.visits.get(id(site), 0)
            noise.keys.visits[id(site)] = noise.visit + 1
        try:
            output = kind.forward(self, *args, **kwargs)
            if self.noise_skip:
                entered = args[0] if args else kwargs["hidden_states"]
                output = skip_samples(noise, site, self.noise_skip, entered, output)
            return output
        finally:
            noise.site, noise.number, noise.visit = before

    return forward


def _dropout_forward(kind: Any) -> Any:
    """A dropout draws under its own name, wherever it is called; its draws are numbered with those around it."""

    def forward(self: Any, input: Any) -> Any:
        noise, before = self.noise, self.noise.site
        noise.site = self.noise_site
        try:
            return kind.forward(self, input)
        finally:
            noise.site = before

    return forward


def _path_forward(kind: Any) -> Any:
    def forward(self: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training or not self.drop_prob or self.noise.keys is None:
            return kind.forward(self, hidden, *args, **kwargs)
        noise = self.noise
        before = noise.visit
        noise.visit = noise.keys.visits.get(id(self.noise_site), 0)
        noise.keys.visits[id(self.noise_site)] = noise.visit + 1
        try:
            return drop_path(noise, self.noise_site, self.drop_prob, hidden)
        finally:
            noise.visit = before

    return forward
