"""Count a model's parameters and their bytes: quantised layers, other frozen parameters, and trained parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .quantised_layer import quantised_layers


@dataclass(frozen=True)
class Footprint:
    """Bytes of parameters on one process that holds all of them."""

    quantised: int
    """Parts of quantised layers."""
    numbers: int
    """Number of weights that these parts store."""
    others: int
    """Other frozen parameters."""
    trained: int

    @property
    def total(self) -> int:
        return self.quantised + self.others + self.trained

    @property
    def bits(self) -> float:
        """Bits of one quantised number, with its share of the scales."""
        return 8 * self.quantised / max(self.numbers, 1)

    def line(self) -> str:
        """The footprint in one line."""
        return (
            f"parameters take {_size(self.total)}: {_size(self.quantised)} in quantised layers "
            f"({self.numbers / 1e6:.2f} M numbers of {self.bits:.2f} bits), {_size(self.others)} in other frozen ones, "
            f"{_size(self.trained)} in trained ones"
        )


def footprint(model: nn.Module) -> Footprint:
    """Bytes of the parameters of ``model``, which may be on the meta device."""
    layers = [layer for _, layer in quantised_layers(model)]
    parts = {id(part) for layer in layers for part in layer.parts().values()}
    rest = [one for one in model.parameters() if id(one) not in parts]
    return Footprint(
        quantised=sum(layer.form.nbytes(*layer.sizes) for layer in layers),
        numbers=sum(layer.sizes[0] * layer.sizes[1] for layer in layers),
        others=sum(_bytes(one) for one in rest if not one.requires_grad),
        trained=sum(_bytes(one) for one in rest if one.requires_grad),
    )


def logical_count(model: nn.Module) -> int:
    """Number of all parameters; quantised layers count with their weights, not with the integers that store them."""
    layers = [layer for _, layer in quantised_layers(model)]
    stored = sum(one.numel() for layer in layers for one in layer.parts().values())
    real = sum(layer.sizes[0] * layer.sizes[1] for layer in layers)
    return sum(one.numel() for one in model.parameters()) - stored + real


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
