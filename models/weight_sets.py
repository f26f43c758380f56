"""Find a model's weight files in a folder by their names, or recognise the folder as a peft adapter. Torch is not
imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .json_file import read_json

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
INDEX = ".index.json"
OTHERS = {
    ".gguf": "GGUF, which llama.cpp reads",
    ".msgpack": "Flax",
    ".h5": "TensorFlow",
    ".pth": "a format of its own",
    ".pt": "a format of its own",
    ".nemo": "NeMo",
    ".onnx": "ONNX",
}
"""Suffix -> format, of weight files that cannot be read."""


@dataclass(frozen=True)
class WeightSet:
    """Files that together hold a model."""

    files: tuple[Path, ...] = ()
    index: Mapping[str, str] = field(default_factory=dict)
    """File name of each tensor; empty without an index file."""
    unread: tuple[str, ...] = ()
    """Names of other weight files in the folder."""


def chosen_set(path: Path) -> WeightSet:
    """The weights at ``path``: a file, an index, or a folder. An empty set if the folder holds none.

    Raises:
        ValueError: an index cannot be read, shards are missing, or the folder has several sets and no name decides.
    """
    if path.is_file():
        return _indexed(path) if path.name.endswith(INDEX) else WeightSet((path,))
    names = sorted(file.name for file in path.iterdir() if file.is_file()) if path.is_dir() else []
    for suffix, standard in ((".safetensors", "model"), (".bin", "pytorch_model")):
        sets = dict(_sets(path, [name for name in names if _is_model(name, suffix)], suffix))
        found = [name for name in (f"{standard}{suffix}", f"{standard}{suffix}{INDEX}") if name in sets]
        found = found or list(sets)
        if len(found) > 1:
            listed = ", ".join(found[:4]) + (" ..." if len(found) > 4 else "")
            raise ValueError(
                f"{path} holds {len(found)} sets of weights, and trireme cannot tell which one to use: {listed}; "
                f"name one of them, such as model.weights={path / found[0]}"
            )
        if found:
            chosen = sets[found[0]]
            used = {file.name for file in chosen.files}
            unread = tuple(name for name in names if name not in used and has_weights(name))
            return WeightSet(chosen.files, chosen.index, unread)
    return WeightSet(unread=tuple(name for name in names if has_weights(name)))


def has_weights(name: str) -> bool:
    """Whether a file of this name holds weights of a model or an adapter, in any format."""
    return name.endswith((".safetensors", *OTHERS)) or bool(re.fullmatch(r"(pytorch|adapter)_model.*\.bin", name))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of peft, and no weights of a whole model.

    Raises:
        ValueError: the folder has several sets of a model's weights, and no name decides.
    """
    return (folder / "adapter_config.json").is_file() and not chosen_set(folder).files


def beside_base(folder: Path) -> str:
    """The recipe overrides that load the base model and merge the adapter in ``folder`` into it."""
    try:
        base = read_json(folder / "adapter_config.json")["base_model_name_or_path"] or "BASE"
    except (OSError, ValueError, KeyError, TypeError):
        base = "BASE"
    return f"model=pretrained model.weights={base} +model.merged_adapters.mine.path={folder}"


def none_there(path: Path) -> str:
    """The message, as ``why; fix``, for a folder without readable weights."""
    unread = chosen_set(path).unread
    if any(name.startswith("adapter_model") for name in unread):
        return (
            "holds an adapter only, not a model; name the model that it was trained for as model.weights, and this "
            "folder as model.adapter.path (to train it on) or model.merged_adapters.NAME.path"
        )
    kinds = {what: name for name in unread for suffix, what in OTHERS.items() if name.endswith(suffix)}
    if kinds:
        what, name = next(iter(kinds.items()))
        return f"holds weights in {what} only ({name}); load them with transformers and save the model with safetensors"
    return "holds no *.safetensors or pytorch_model*.bin; save the model with safetensors"


def _is_model(name: str, suffix: str) -> bool:
    if name.startswith(("adapter_model", "optimizer", "scheduler", "training_args", "random_states")):
        return False
    return name.removesuffix(INDEX).endswith(suffix) and (suffix == ".safetensors" or name.startswith("pytorch_model"))


def _sets(folder: Path, names: list[str], suffix: str) -> Iterator[tuple[str, WeightSet]]:
    """(name, set) of every set of weights; the name is that of its index, its only file or its first shard."""
    taken: set[str] = set()
    for name in names:
        if name.endswith(INDEX):
            indexed = _indexed(folder / name)
            taken |= {file.name for file in indexed.files}
            yield name, indexed
    stems: dict[tuple[str, int], list[str]] = {}
    for name in names:
        shard = SHARD.fullmatch(name)
        if name in taken or not name.endswith(suffix):
            continue
        if shard:
            stems.setdefault((shard[1], int(shard[3])), []).append(name)
        else:
            yield name, WeightSet((folder / name,))
    for (stem, count), shards in stems.items():
        if len(shards) != count:
            missing = sorted({f"{stem}-{n:05d}-of-{count:05d}{suffix}" for n in range(1, count + 1)} - set(shards))
            raise ValueError(f"{folder} lacks {', '.join(missing[:3])}; fetch the folder again")
        yield shards[0], WeightSet(tuple(folder / name for name in shards))


def _indexed(index: Path) -> WeightSet:
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index}: is not an index of weight files ({error!r})") from None
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"{index}: names a file outside its folder, {outside[0]!r}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(f"{index.name} names {listed}, which cannot be found; fetch the folder again")
    return WeightSet(tuple(index.parent / name for name in names), weight_map)
