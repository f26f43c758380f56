"""Find trained parameters that get no gradient in the first step under DeepSpeed. It frees gradients immediately, so a
hook on each parameter notes that a gradient has arrived.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn


class GradientWatch:
    """Records which trained parameters of a model get a gradient, until ``missing`` is called."""

    def __init__(self, model: nn.Module) -> None:
        trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        self._missing = {name for name, _ in trained}
        self._handles = [one.register_hook(partial(self._reached, name)) for name, one in trained]

    def _reached(self, name: str, gradient: Tensor) -> None:
        self._missing.discard(name)

    def missing(self) -> set[str]:
        """Names of the parameters without a gradient so far; removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self._missing
