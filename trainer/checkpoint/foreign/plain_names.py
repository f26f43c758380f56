"""Match the tensor names in another tool's checkpoint with the parameter names of the model, and warn of weights that
the model has no place for.

Scripts save the model inside another object (``app.model.<name>``), and wrappers add prefixes (``_orig_mod.``). A
stored name matches when it ends with a parameter name; the prefix before it must be the same for all tensors.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from transformers import PreTrainedModel

from ....models.stored_names import grouped, own_names, plain, quantised_by, redundant

log = logging.getLogger("trireme.checkpoint")
CONTAINERS = ("app.model.", "model_state.", "state_dict.", "model.", "module.")
"""Prefixes to remove if all names begin with one of them, used when no model is given."""


def matched(stored: Iterable[str], model: PreTrainedModel | None) -> dict[str, str]:
    """For each name of the model, the stored name; stored tensors that the model does not have are left out."""
    by_plain = {plain(name): name for name in stored}
    if model is None:
        prefix = next((c for c in CONTAINERS if by_plain and all(n.startswith(c) for n in by_plain)), "")
        return {name.removeprefix(prefix): stored for name, stored in by_plain.items()}
    own = own_names(model)
    prefix = _common_prefix(by_plain, own)
    found: dict[str, str] = {}
    for name, whole in by_plain.items():
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest in own:
            if rest == own[rest]:
                found[rest] = whole  # under its own name
            else:
                found.setdefault(own[rest], whole)  # tied, saved under the other name
    return found


def tell_unused(stored: Iterable[str], found: dict[str, str], model: PreTrainedModel | None, path: Path) -> None:
    """Warn of stored weights that ``matched`` left out because ``model`` has no place for them.

    Raises:
        ValueError: the weights are quantised, so that they mean nothing without what was left out.
    """
    if model is None:
        return
    own = own_names(model)
    used = {plain(name) for name in found.values()}
    prefix = _common_prefix(used, own)
    left = [name for name in map(plain, stored) if name not in used and name.removeprefix(prefix) not in own]
    left = [name for name in left if not redundant(name.removeprefix(prefix), model)]
    if quantised := quantised_by(left):
        raise ValueError(f"{path} holds quantised weights ({quantised[0]}: {quantised[1]}), which cannot be trained")
    if left:
        listed = grouped(left, {"layers": getattr(model.config, "num_hidden_layers", 0)})
        log.warning("%s: %d stored tensor(s) have no place in the model and are not used: %s", path, len(left), listed)


def suffixes(name: str) -> Iterator[tuple[str, str]]:
    """(prefix, rest) at every dot: ``("", "a.b")``, ``("a.", "b")``."""
    parts = name.split(".")
    for cut in range(len(parts)):
        yield ".".join([*parts[:cut], ""]) if cut else "", ".".join(parts[cut:])


def _common_prefix(names: Collection[str], own: Collection[str]) -> str:
    """The prefix with which most names of the model are stored; of equally frequent ones (a stored average) the
    shortest."""
    votes = Counter(prefix for name in names for prefix, rest in suffixes(name) if rest in own)
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix)), default="")
