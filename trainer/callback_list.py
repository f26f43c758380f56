"""The list of a run's callbacks: add and remove them by name, and call their events in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .callbacks.callback import Callback
from .component_errors import component_errors
from .trainer_state import NotTheirs

if TYPE_CHECKING:
    from .loop import Trainer


class CallbackList(dict[str, Callback]):
    """Callbacks by name. While a run goes on they may be added and removed, by every rank at the same step."""

    def add(self, name: str, callback: Callback) -> None:
        """Add a callback, whose events are called after those of the others.

        Raises:
            ValueError: the name is taken.
            TypeError: it is no callback.
        """
        if name in self:
            raise ValueError(f"there is a callback {name} already; remove it first, or choose another name")
        if not isinstance(callback, Callback):
            base = f"{Callback.__module__}.{Callback.__qualname__}"
            raise TypeError(f"{type(callback).__name__} is not a callback; derive it from {base}")
        self[name] = callback

    def remove(self, name: str) -> Callback:
        """Remove a callback and return it, not closed.

        Raises:
            ValueError: there is none of this name.
        """
        if name not in self:
            raise ValueError(f"there is no callback {name}; there are {', '.join(self)}")
        return self.pop(name)

    def emit(self, trainer: Trainer, event: str, *details: Any) -> None:
        """Call ``event`` of every callback, in their order."""
        state, control, empty = trainer.state, trainer.control, getattr(Callback, event)
        for name, callback in list(self.items()):
            if getattr(getattr(callback, event), "__func__", None) is empty:
                continue  # most callbacks have few of the events, and each call costs some microseconds
            with component_errors(f"callbacks.{name}", callback, event), state.read_only():
                getattr(callback, event)(trainer, state, control, *details)
                if trainer.state is not state or trainer.control is not control:
                    raise NotTheirs("replaces trainer.state or trainer.control", "callbacks share them", "leave them")
