"""NEFTune: uniform noise on token embeddings during training (https://arxiv.org/abs/2310.05914).

The noise on each element lies in +-alpha / sqrt(L d). d is the width of the embedding, and L is the number of tokens of
the sample without padding. In packed sequences L is the number of tokens of the document. The noise depends on (seed,
step, sample, position, feature), so it is the same under every parallelism plan and after a resume. Evaluation has no
noise.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .family import ModelFamily
from .find_blocks import embeddings_of
from .noise import Noise, Site
from .noise_bits import uniform
from .noise_hash import text_key
from .noise_keys import MicroKeys


def add_neftune(model: nn.Module, family: ModelFamily, noise: Noise) -> None:
    """Add noise behind every embedding with the weight of the token embedding: an encoder and a decoder have one each,
    and later stages of a pipeline have none."""
    found = token_embeddings(model, family)
    weights = {id(module.weight) for module in found if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        same = isinstance(module, nn.Embedding) and id(module.weight) in weights
        if same or any(module is one for one in found):
            site = Site(name, torch.tensor(text_key("neftune", name), dtype=torch.int32, device="cpu"))
            module.__dict__["neftune_hook"] = module.register_forward_hook(partial(_noisy, noise, site))


def token_embeddings(model: Any, family: ModelFamily) -> list[nn.Module]:
    """The embedding modules for tokens of ``model``; none for models of images and audio clips."""
    found: list[Any] = [module for _, module in embeddings_of(model, family)]
    if not found and hasattr(model, "get_input_embeddings"):  # a backbone without head has other paths
        with suppress(AttributeError, NotImplementedError):
            found = [model.get_input_embeddings()]
    return [module for module in found if hasattr(module, "num_embeddings")]


def _noisy(noise: Noise, site: Site, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    rows = noise.rows_of(site, output.shape) if module.training else None
    if rows is None or noise.keys is None or noise.neftune_alpha is None:
        return output
    length = own_lengths(noise.keys, site, args[0])
    bound = noise.neftune_alpha / (length * output.shape[-1]).sqrt()
    return output + (uniform(rows, output.shape[-1]) * bound.unsqueeze(-1)).to(output.dtype)


def own_lengths(keys: MicroKeys, site: Site, tokens: Tensor) -> Tensor:
    """Number of tokens in the sample or document of each token: [rows, 1] or [rows, length], fp32.

    Args:
        tokens: [rows, length], or several rows for each sample.
    """
    found = keys.target_lengths if "decoder" in site.name.split(".") else keys.lengths
    if found is None or found.shape[1] not in (1, tokens.shape[1]):
        return torch.full((1, 1), float(tokens.shape[1]), device=tokens.device)
    if len(found) != len(tokens):
        found = found.repeat_interleave(len(tokens) // len(found), 0)
    return found.clamp(min=1).float()
