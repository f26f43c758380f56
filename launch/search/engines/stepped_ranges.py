"""For hyperparameter search libraries that have no ranges with a step (such as 16, 32 ... 128): list the values of such
a range, and round a value that the library chose to the nearest of them.
"""

from __future__ import annotations

from typing import Any

from ..space import Parameter


def steps(parameter: Parameter) -> list[Any]:
    """The values of a range with a step, from ``low`` on."""
    assert parameter.step is not None
    count = int((parameter.high - parameter.low) / parameter.step + 1e-9)
    values = [parameter.low + index * parameter.step for index in range(count + 1)]
    return [int(value) for value in values] if parameter.whole else [round(value, 12) for value in values]


def fitted(parameter: Parameter, value: Any) -> Any:
    """A value that an engine gives, as the study keeps it: at an end of the range if it lies beyond, and on a step."""
    if parameter.choices is not None:
        return value
    if parameter.step is not None:
        return min(steps(parameter), key=lambda step: abs(step - value))
    value = min(max(value, parameter.low), parameter.high)
    return round(value) if parameter.whole else float(value)
