"""Format the metrics of a logged step or an evaluation as text for the terminal and ``log.txt``. Values of a user's
callback that are not single numbers are refused.
"""

from __future__ import annotations

from numbers import Number
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .callback import Metrics
from .throughput import memory_mib

if TYPE_CHECKING:
    import torch


def training_parts(metrics: Metrics, device: torch.device) -> list[str]:
    """Loss, learning rate, tokens (images, frames ...) per second and memory of a training line."""
    parts = []
    if (loss := metrics.get("loss")) is not None:
        parts.append(f"loss {number(loss)}")
    if (lr := metrics.get("lr")) is not None:
        parts.append(f"lr {lr:.2e}")
    if unit := unit_of(metrics):
        rate, name = metrics[f"{unit}_per_second"], "tok" if unit == "tokens" else unit
        parts.append(f"{rate / 1000:.1f}k {name}/s" if rate >= 1000 else f"{rate:.0f} {name}/s")
    return [*parts, _memory(memory_mib(device))]


def unit_of(metrics: Metrics) -> str:
    """What the lengths of samples count, from a training line: ``tokens``, ``images`` ...; empty if it has no rate."""
    rates = (name.removesuffix("_per_second") for name in metrics if name.endswith("_per_second"))
    return next((unit for unit in rates if unit in metrics or unit == "tokens"), "")


def refuse_no_numbers(extra: Metrics) -> None:
    """Refuse values in ``trainer.extra_metrics`` that are no single number.

    Raises:
        UserError: names the metric.
    """
    for name, value in extra.items():
        single = value.numel() == 1 if hasattr(value, "numel") else isinstance(value, int | float | Number)
        if not single and getattr(value, "size", 0) != 1:
            why = f"a metric is one number, and this is a {type(value).__name__}"
            raise UserError(
                Problem(f"trainer.extra_metrics[{name!r}]", why, "set a number, such as tensor.mean().item()")
            )


def evaluation_parts(metrics: Metrics) -> list[str]:
    """Name and value of every held-out metric; for the single sources of a mixture, only the losses."""
    shown = [name for name in metrics if name.startswith(("eval_", "test_")) and ("/" not in name or "_loss/" in name)]
    parts = [f"{name} {number(metrics[name])}" for name in shown]
    return [*parts, "(averaged weights)"] if metrics.get("averaged") else parts


def number(value: Any) -> str:
    """A number with four decimals, so that values of a metric align; six significant digits if these do not suffice."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if value == 0 or 1e-4 <= abs(value) < 1e4 else f"{value:.6g}"


def _memory(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
