"""``HeadOutput``: the loss and likeliest token of each position, which a language model's head returns instead of
logits. ``logit_map`` finds the operations, such as scaling and capping, that a model applies to its head's output.

The code of transformers' classes applies operations to the output of the head: it scales (Cohere, Granite), caps
(Gemma) or casts the logits. ``logit_map`` finds these operations beforehand, for any class, and the head applies them
itself before it computes the loss. A ``HeadOutput`` therefore ignores them. During training, each operation is compared
with the ones found beforehand, so none is lost silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import Problem, UserError
from .loss_terms import LogitMap

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Step = tuple[str, float]
"""(``times``, factor) or (``tanh``, 0)."""


def no_logits(why: str) -> UserError:
    """The error for code that needs logits."""
    return UserError(Problem("model.loss", f"computes losses without logits, but {why}", "set model.loss=plain"))


class HeadOutput(Tensor):
    """[batch, length, 2]: loss (with gradient) and likeliest token of each position, in fp32.

    It can be cut and joined along its first two dimensions.
    """

    steps: list[Step] | None
    """Operations on logits that the model still has to apply; None during the trial that finds them."""
    done: list[Step]
    """Operations that the trial has seen so far."""
    extras: tuple[float, float]
    """Smoothing and z-loss of the losses."""

    @classmethod
    def of(cls, values: Tensor, steps: list[Step] | None, extras: tuple[float, float] = (0.0, 0.0)) -> HeadOutput:
        output = values.as_subclass(cls)
        output.steps, output.done, output.extras = steps, [], extras
        return output

    @property
    def losses(self) -> Tensor:
        """[batch, length]."""
        return self.as_subclass(Tensor)[..., 0]

    @property
    def tokens(self) -> Tensor:
        """[batch, length], int64."""
        return self.as_subclass(Tensor)[..., 1].detach().long()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        first = args[0] if args else kwargs.get("input")
        if isinstance(first, HeadOutput) and name in SAME and not kwargs.get("inplace"):
            return first
        if (step := _step(name, args)) is not None:
            output = next(each for each in args if isinstance(each, HeadOutput))
            output.meet(step)
            return output
        if name not in KEPT:
            raise no_logits(f"the task calls {name} on logits")
        result = super().__torch_function__(func, types, args, kwargs)
        _copy_attributes(args, result)
        return result

    def meet(self, step: Step) -> None:
        """Note a step, or compare it with the one that is expected.

        Raises:
            UserError: it is another one.
        """
        if self.steps is None:
            self.done.append(step)
        elif not self.steps or not _same(self.steps[0], step):
            raise no_logits(
                f"the model now changes its logits in another way than before the run ({step[0]} {step[1]:g})"
            )
        else:
            self.steps = self.steps[1:]


SAME = {"float", "to", "type", "type_as", "contiguous", "cpu", "cuda", "requires_grad_"}
"""Casts and moves, since losses stay in fp32 where they are."""
KEPT = {
    *("__get__", "__set__", "__len__", "__hash__", "__repr__", "__format__", "__deepcopy__", "size", "dim", "numel"),
    *("stride", "storage_offset", "element_size", "is_floating_point", "is_complex", "is_contiguous", "is_same_size"),
    *("data_ptr", "get_device", "untyped_storage", "record_stream", "_is_view", "__getitem__", "narrow", "cat"),
    *("concat", "split", "chunk", "index_select", "unbind", "flatten", "view", "view_as", "detach", "detach_"),
    *("clone", "as_subclass", "new_empty", "isfinite", "register_hook", "register_post_accumulate_grad_hook"),
    *("retain_grad", "backward"),
}
"""Other operations that are allowed: those that select positions, and those that engines call on any tensor."""


def _step(name: str, args: tuple) -> Step | None:
    """The step that an operation takes on logits, if it is a scale or a cap; None for other operations."""
    if name == "tanh":
        return ("tanh", 0.0)
    if len(args) < 2:
        return None
    numbers = [each for each in args[:2] if not isinstance(each, HeadOutput)]
    if len(numbers) != 1 or (number := _number(numbers[0])) is None:
        return None
    if name in ("mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__"):
        return ("times", number)
    divides = name in ("div", "divide", "true_divide", "__truediv__", "div_", "__itruediv__")
    if divides and isinstance(args[0], HeadOutput) and number:
        return ("times", 1.0 / number)
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad and not value.is_meta:
        return float(value)
    return None


def _same(one: Step, other: Step) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) <= 1e-6 * abs(one[1])


def _copy_attributes(args: tuple, result: Any) -> None:
    """Copy the attributes of an output to results that are parts of it."""
    source = next((each for each in args if isinstance(each, HeadOutput)), None)
    joined = args[0] if args and isinstance(args[0], list | tuple) else ()
    source = source if source is not None else next((each for each in joined if isinstance(each, HeadOutput)), None)
    for each in result if isinstance(result, list | tuple) else (result,):
        if isinstance(each, HeadOutput) and source is not None:
            for name, value in source.__dict__.items():
                if name not in each.__dict__:
                    setattr(each, name, value)


def logit_map(model: PreTrainedModel, head: nn.Module) -> tuple[LogitMap | None, list[Step], str]:
    """The operations that ``model`` (on the meta device) applies to the output of ``head``, its layer over tokens.

    The class of the model runs on the meta device, with a stand-in for the network below the head.

    Returns:
        (the map, its steps, ""), or (None, [], why there is none, as a clause after the name of the model).
    """
    try:
        found = _observed(model, head)
    except Exception as error:  # a class may do anything with its inputs
        return None, [], f"does not run without data: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(found, str):
        return None, [], found
    return (*_as_map(found), "") if _as_map(found)[0] is not None else (None, [], "caps its logits in an unknown way")


def _as_map(steps: list[Step]) -> tuple[LogitMap | None, list[Step]]:
    scale, cap = 1.0, None
    for kind, value in steps:
        if kind == "tanh":
            if cap is not None:
                return None, []
            cap = 1.0
        elif cap is None:
            scale *= value
        else:
            cap *= value
    return LogitMap(scale, cap), steps


def _observed(model: PreTrainedModel, head: nn.Module) -> list[Step] | str:
    calls = 0

    def stand_in(hidden: Tensor, *_: Any, **__: Any) -> HeadOutput:
        nonlocal calls
        calls += 1
        return HeadOutput.of(torch.empty(*hidden.shape[:-1], 2, device="meta"), None)

    ids = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    with ExitStack() as undo, torch.no_grad():
        undo.enter_context(_replaced(head, stand_in))
        base = model.base_model
        if base is not model and not any(module is head for module in base.modules()):
            undo.enter_context(_replaced(base, _network(model)))
        outputs = model(**inputs)
    logits = getattr(outputs, "logits", None)
    logits = getattr(outputs, "prediction_logits", None) if logits is None else logits
    if calls != 1:
        return f"calls its head {calls} times"
    if not isinstance(logits, HeadOutput):
        return "gives other logits than those of its head"
    return logits.done


def _network(model: PreTrainedModel) -> Callable[..., Any]:
    """A stand-in for the network below the head."""
    from .hidden_size import hidden_size

    def network(*_: Any, **__: Any) -> Any:
        return _States(torch.empty(1, 2, hidden_size(model.config.get_text_config()), device="meta"))

    return network


class _States:
    """Outputs of a network: hidden states without values, and None for whatever else there may be."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = self.encoder_last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state, None)[index]


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """``module`` with another forward."""
    kept = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if kept is None:
            del module.forward
        else:
            module.forward = kept
