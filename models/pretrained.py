"""Load weights from safetensors or ``.bin`` files into a model, one tensor at a time.

Every stored tensor is loaded, known to be redundant, or named in a warning. No tensor is ignored silently.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import Problem, UserError
from .family import ModelFamily
from .find_blocks import block_lists, heads_of
from .locate import locate
from .low_rank import is_part
from .quantization.stored_quantization import StoredQuantization
from .stored_names import ADAPTER, grouped, own_names, plain, quantised_by, redundant
from .weight_files import Stored, stored_tensors
from .weight_sets import chosen_set, none_there

log = logging.getLogger("trireme.models")


@dataclass(frozen=True)
class Matched:
    """The stored tensors of a model, by the model's own names."""

    tensors: dict[str, Stored]
    notes: tuple[str, ...] = ()
    """Messages about stored tensors and files that are not used, and about a head that begins at random."""
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    """Shape in the model of tensors that have fewer rows in the files."""

    @property
    def packed(self) -> dict[str, Stored]:
        """The weights that the files hold in quantised form."""
        return {name: entry for name, entry in self.tensors.items() if entry.packed is not None}


def folder_weights(
    model: PreTrainedModel, path: Path, family: ModelFamily, names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of ``model`` by its own names, in fp32, read from the safetensors or ``.bin`` files at ``path``.

    Args:
        path: a folder, or one file.
        names: the tensors to read; that the files hold all others is checked too.

    Raises:
        UserError: ``match_weights`` fails, or a file is damaged.
    """
    return read_weights(match_weights(model, path, family), path, names)


def read_weights(matched: Matched, path: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``matched``, in fp32, in the order of the files.

    Raises:
        UserError: a file is damaged.
    """
    for name, entry in matched.tensors.items():
        if names is None or name in names:
            try:
                tensor = entry.read()
            except ValueError as error:
                raise UserError(_unusable(path, error)) from None
            yield name, tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def match_weights(
    model: PreTrainedModel,
    path: Path,
    family: ModelFamily,
    new_head: bool = False,
    resize: bool = False,
    quantization: StoredQuantization | None = None,
) -> Matched:
    """Find every tensor of ``model`` (on the meta device) in the files at ``path``, without reading it.

    Stored names may lack the model's prefix, have the prefixes of wrappers, or be older than a renaming. A tied tensor
    may be stored under any of its names. A head for labels that the files lack begins at random.

    Args:
        new_head: begin the head at random, whatever the files hold.
        resize: the model may have more tokens than the files.
        quantization: how the files hold layers that are quantised; None refuses such files.

    Raises:
        UserError: a tensor is missing or has another shape, the weights are quantised or an adapter's, a tied tensor is
            stored with two values, or a file is damaged or not safe to load.
    """
    stored, unread = _stored_at(path, quantization)
    own = {name: one for name, one in own_names(model).items() if not is_part(name)}
    found: dict[str, Stored] = {}
    twice: dict[str, Stored] = {}
    unused, renamed = [], renaming(model)
    for name, entry in stored.items():
        place = _place(name, own, model.base_model_prefix, family, renamed)
        if not place:
            unused.append(name)
            continue
        entry = _oriented(entry, model, own[place])
        if own[place] in found:  # a tied tensor that is stored under several names
            twice[own[place]] = found[own[place]]
        found[own[place]] = entry
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    wanted = {name: wanted[name] for name in own.values()}
    if new_head:
        unused += [name for name in found if _in_head(name, model)]
        found = {name: entry for name, entry in found.items() if not _in_head(name, model)}
    more = _more_rows(found, wanted, model) if resize else {}
    fresh = _fresh(set(wanted) - set(found), model, family, new_head)
    problems = [
        *_other_kinds(unused, path),
        *(_misfits(found, wanted, model, more) or _missing(set(wanted) - set(found) - fresh, path, family)),
        *_untied(twice, found),
        *_frozen_at_random({*fresh, *more}, model, family),
    ]
    if problems:
        raise UserError(problems[0])
    notes = [*_notes(unused, unread, model, family, path), *_fresh_notes(fresh, more, found)]
    return Matched(found, tuple(notes), more)


def _stored_at(path: Path, quantization: StoredQuantization | None) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """Tensors in the files at ``path`` by their stored names, and the files that are not read."""
    try:
        stored = stored_tensors(path)
        stored = stored if quantization is None else quantization.whole(stored)
        unread = chosen_set(path).unread
    except ValueError as error:
        raise UserError(_unusable(path, error)) from None
    if not stored:
        why, _, fix = none_there(path).partition("; ")
        raise UserError(Problem("model.weights", why, fix, str(path)))
    return stored, unread


def _oriented(entry: Stored, model: PreTrainedModel, name: str) -> Stored:
    """A tensor as the layer's class holds it: folders hold quantised weights as [outputs, inputs]."""
    if entry.packed is None or not isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):
        return entry
    shape, read = entry.shape[::-1], lambda: entry.read().T.contiguous()
    return Stored(entry.file, shape, entry.dtype, read, None, entry.packed, entry.form)


def _in_head(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor lies outside of the backbone."""
    prefix = model.base_model_prefix
    return bool(prefix) and hasattr(model, prefix) and not name.startswith(f"{prefix}.")


def _in_pooler(name: str) -> bool:
    """Whether a tensor belongs to a pooler, which language models are published without and which heads for labels
    train anew."""
    return "pooler" in name.split(".")


def _fresh(missing: set[str], model: PreTrainedModel, family: ModelFamily, new_head: bool) -> set[str]:
    """The missing tensors that may begin at random: those of a head for labels, or of any head if ``new_head``."""
    tokens = {path for path, _ in heads_of(model, family)}
    outside = {name for name in missing if _in_head(name, model) or _in_pooler(name)}
    if new_head:
        return outside
    return {name for name in outside if not any(name.startswith(f"{path}.") for path in tokens)}


def _more_rows(found: dict[str, Stored], wanted: dict[str, Tensor], model: PreTrainedModel) -> dict[str, torch.Size]:
    """Tensors with a row per token that have more rows in the model than in the files."""
    tokens = model.config.get_text_config().vocab_size
    return {
        name: wanted[name].shape
        for name, entry in found.items()
        if wanted[name].shape[:1] == (tokens,)
        and entry.shape[1:] == wanted[name].shape[1:]
        and entry.shape[:1] < (tokens,)
    }


def _frozen_at_random(names: set[str], model: PreTrainedModel, family: ModelFamily) -> Iterator[Problem]:
    """Refuse tensors that begin at random and are never trained, such as the head of a new task beside adapters, or the
    embeddings of new tokens that are frozen."""
    parameters = dict(model.named_parameters())
    left = sorted(name for name in names if name in parameters and not parameters[name].requires_grad)
    left = [name for name in left if not any(fnmatch.fnmatchcase(name, pattern) for pattern in family.unused)]
    if left and any(is_part(name) for name in parameters):
        modules = dict.fromkeys(name.rpartition(".")[0].rpartition(".")[2] for name in left)
        why = f"are missing from the weights, so they would begin at random and stay frozen: {_listed(left)}"
        fix = f"set model.adapter.modules_to_save=[{','.join(modules)}]"
        yield Problem("model.adapter", f"parameters {why}", fix)
    elif left:
        why = f"freezes parameters that begin at random, since the weights lack all or part of them: {_listed(left)}"
        yield Problem("model.frozen", why, "train them: leave them out of model.frozen")


def _fresh_notes(fresh: set[str], more: dict[str, torch.Size], found: dict[str, Stored]) -> Iterator[str]:
    if fresh:
        yield f"begins at random, since the files do not hold it: {_listed(sorted(fresh), 6)}"
    for name, shape in more.items():
        stored = found[name].shape[0]
        yield f"{name} has {stored} tokens in the files and {shape[0]} in the model: the rest begins at random"


def renaming(model: PreTrainedModel) -> Callable[[str], str]:
    """The function from a published name of a tensor to that of transformers' class now, where a part was renamed."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    return lambda name: rename_source_key(name, rules, [])[0]


def _place(
    stored: str, own: dict[str, str], prefix: str, family: ModelFamily, renamed: Callable[[str], str] = str
) -> str:
    """The model's name for a stored tensor; empty if the model has no such tensor."""
    stored = plain(stored)
    stored = stored if stored in own else stored.removeprefix("module.")
    if stored not in own and family.published[0]:
        stored = locate(f"{family.published[0]}.name")(stored)
    for old, new in family.stored_names:
        if stored.startswith(f"{old}."):
            stored = new + stored.removeprefix(old)
    for known in (stored, renamed(stored)):
        for name in (known, f"{prefix}.{known}", known.removeprefix(f"{prefix}.")):
            if name in own:
                return name
    return ""


def _other_kinds(unused: list[str], path: Path) -> list[Problem]:
    """Refuse quantised weights and adapters, by the names of their tensors; config.json may not mention them."""
    if found := quantised_by(unused):
        return [quantised(path, *found)]
    adapter = next((name for name in unused if ADAPTER.search(name)), None)
    if adapter is None:
        return []
    fix = "merge them into the model (peft: model.merge_and_unload().save_pretrained(FOLDER)) and name that folder; an "
    fix += "adapter beside its base is named by model.adapter.path, or by model.merged_adapters"
    return [Problem("model.weights", f"holds tensors of an adapter, such as {adapter}", fix, str(path))]


def quantised(path: Path, method: str, name: str) -> Problem:
    """The refusal of quantised weights."""
    return Problem(
        "model.weights",
        f"holds quantised weights ({method}): {name} scales or packs them, so alone they are other numbers",
        "use the model before it was quantised, or load it with transformers, call model.dequantize(), and save it",
        str(path),
    )


def _misfits(
    found: dict[str, Stored], wanted: dict[str, Tensor], model: PreTrainedModel, more: dict[str, torch.Size]
) -> list[Problem]:
    for name, entry in found.items():
        like = wanted[name]
        if (entry.dtype.itemsize == 1 and like.is_floating_point()) or (
            like.is_floating_point() and not entry.dtype.is_floating_point
        ):
            kind = str(entry.dtype).removeprefix("torch.")
            return [
                Problem(
                    "model.weights",
                    f"holds {name} in {kind} ({entry.file.name}): the weights are quantised",
                    "use the model before it was quantised, or load it with transformers, call model.dequantize(), and "
                    "save it",
                    str(entry.file.parent),
                )
            ]
        if entry.shape != like.shape and name not in more:
            why = f"{name} in {entry.file.name} has shape {tuple(entry.shape)}, the model has {tuple(like.shape)}"
            if _in_head(name, model) and entry.shape[1:] == like.shape[1:]:
                fix = "to begin a head of another size at random, set model.new_head=true"
                return [Problem("model.weights", why, fix, str(entry.file.parent))]
            fix = "leave model.config to the config.json of the weights, or match it to them"
            return [Problem("model.config", why, fix)]
    return []


def _missing(missing: set[str], path: Path, family: ModelFamily) -> list[Problem]:
    if not missing:
        return []
    listed = _listed(sorted(missing), 5)
    count = f"{len(missing)} tensor{'s' if len(missing) > 1 else ''}"
    fix = "use weights of this family and size, or match model.config to them"
    if family.cut and all(name.startswith(f"{family.cut.head}.") for name in missing):
        fix = "use a folder saved with its language model head; if the head is the embedding, set "
        fix += "model.config.tie_word_embeddings=true"
    return [Problem("model.weights", f"lacks {count} of the model: {listed}", fix, str(path))]


def _untied(twice: dict[str, Stored], found: dict[str, Stored]) -> list[Problem]:
    """Refuse tied tensors that are stored with two different values, since one would be lost."""
    for name, one in twice.items():
        if not torch.equal(one.read(), found[name].read()):
            why = f"is true, but {one.file.name} holds a head that differs from the embedding ({name})"
            return [Problem("model.config.tie_word_embeddings", why, "set model.config.tie_word_embeddings=false")]
    return []


def _notes(
    unused: list[str], unread: tuple[str, ...], model: PreTrainedModel, family: ModelFamily, path: Path
) -> Iterator[str]:
    left = [name for name in unused if not redundant(plain(name), model)]
    if left:
        lists = {path: len(list(stack.children())) for path, stack in block_lists(model, family)}
        yield (
            f"{len(left)} tensor{'s' if len(left) > 1 else ''} of {path} {'have' if len(left) > 1 else 'has'} no place "
            f"in the model and will not be trained, saved or exported: {grouped(left, lists)}"
        )
    if unread:
        files = sorted(file.name for file in chosen_set(path).files)
        yield f"weights are read from {_listed(files)}; not read: {_listed(unread)}"


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _unusable(path: Path, error: ValueError) -> Problem:
    why, _, fix = str(error).partition("; ")
    return Problem("model.weights", f"cannot be used: {why}", fix or "fetch or export the file again", str(path))
