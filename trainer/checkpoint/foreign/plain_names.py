"""From the names that others give tensors to the model's own.

Scripts save the model within something (``app.model.<name>``), and wrappers leave their marks (``_orig_mod.``). Where
the model is known, a stored name belongs to it when it ends in one of its names; what stands before must be the same
for all tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from transformers import PreTrainedModel

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Marks of torch.compile, FSDP and recomputation within names."""
CONTAINERS = ("app.model.", "model_state.", "state_dict.", "model.", "module.")
"""What is taken off when all names begin with it and no model is at hand to tell."""


def plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def own_names(model: PreTrainedModel) -> dict[str, str]:
    """Names in the model's state dict -> the name under which trireme keeps the tensor: of tied ones, the first."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        names[name] = first.setdefault(id(tensor), name)
    kept = model.state_dict()
    return {name: own for name, own in names.items() if name in kept}


def matched(stored: Iterable[str], model: PreTrainedModel | None) -> dict[str, str]:
    """Own names -> stored names of weights; what does not belong to the model is left out."""
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


def suffixes(name: str) -> Iterator[tuple[str, str]]:
    """(prefix, rest) at every dot: ``("", "a.b")``, ``("a.", "b")``."""
    parts = name.split(".")
    for cut in range(len(parts)):
        yield ".".join([*parts[:cut], ""]) if cut else "", ".".join(parts[cut:])


def _common_prefix(names: Collection[str], own: Collection[str]) -> str:
    """What stands before most of the model's names; of several (an average beside the model), the shortest."""
    votes = Counter(prefix for name in names for prefix, rest in suffixes(name) if rest in own)
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix)), default="")
