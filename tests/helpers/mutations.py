"""Wrong values and misspelt names of recipe keys, and nonsense in environment variables. The fuzz test of ``trireme``
tries some of them, drawn at random.

The keys come from the schema and from the packaged components (``trireme keys``), so that a new key is fuzzed without a
change here. Files are mutated in ``helpers/mutated_files.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from trireme.configs.key_list import FOLDER, Key, keys
from trireme.launch.check_environment import CHOICES, LEAST
from trireme.models.family import families
from trireme.trainer.component import locate
from trireme.trainer.trackers.registry import CLASSES as TRACKERS
from trireme.trainer.trackers.tracker import Tracker

NOTHING: Callable[[Path], list[str]] = lambda folder: []  # noqa: E731

DECODERS = {name for name, family in families().items() if family.cut is not None}
"""Model families for the task of the tiny recipe, which is next-token prediction."""


@dataclass(frozen=True)
class Mutation:
    """One thing that a person may get wrong."""

    name: str
    overrides: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    """A refusal shows one of these words; empty: a word that every refusal has."""
    nonsense: bool = False
    """Whether the mutation is certainly invalid, so that it must be refused; others may also be accepted."""
    environment: dict[str, str] = field(default_factory=dict)
    arrange: Callable[[Path], list[str]] = NOTHING
    """Write files into the mutation's own folder; returns the overrides that name them."""
    recipe: Callable[[Path], Path] | None = None
    """Write the recipe; None takes the tiny one."""


LONG = "x" * 5000
HERE = Path(__file__).parent
# value in Hydra's grammar, and the types (of ``trireme keys``) that may hold it
WRONG: dict[str, tuple[str, set[str]]] = {
    "words": ("some_words", {"str", "any", "component", "list of str"}),
    "whole number": ("3", {"int", "float", "list of int", "list of float", "any", "3"}),
    "fraction": ("2.5", {"float", "list of float", "any"}),
    "negative": ("-3", {"any"}),
    "negative fraction": ("-0.5", {"any"}),
    "zero": ("0", {"int", "float", "list of int", "list of float", "any", "0"}),
    "beyond 64 bits": ("1" + "0" * 30, set()),
    "large": (str(2**62), {"int", "float", "list of int", "list of float", "any"}),
    "tiny": ("1e-300", {"float", "list of float", "any"}),
    "infinite": ("inf", set()),
    "not a number": ("nan", set()),
    "quoted number": ("'3'", {"str", "list of str", "any"}),
    "true": ("true", {"bool", "any"}),
    "null": ("null", {"null", "component", "any", "mapping"}),
    "empty": ("''", {"null", "any", "list of str"}),
    "list": ("[a,b]", {"list of str", "any"}),
    "list of lists": ("[[1],[2]]", {"any"}),
    "empty list": ("[]", {"list of str", "list of int", "list of float", "any"}),
    "mapping": ("{a:1}", {"mapping", "component", "any"}),
    "NUL": ("'a\0b'", set()),
    "line break": ("'a\nb'", {"str", "list of str", "any"}),
    "endless": (LONG, {"str", "list of str", "any"}),
    "other script": ("'\u3042\U0001f6a3'", {"str", "list of str", "any"}),
    "half a surrogate": ("'\udc80'", set()),
    "missing": ("???", {"str"}),
    "interpolation": ("${no.such.key}", set()),
    "environment": ("${oc.env:NO_SUCH_VARIABLE}", set()),
}
BELOW_ZERO = {"optimizer.beta2_decay", "callbacks.early_stopping.min_delta"}
"""Numbers that may be negative."""
NEVER_REQUIRED = {"callbacks", "model.config", "launch.sbatch", "launch.env"}
"""Mappings whose keys the user chooses."""
CONTEXTS = {
    "data.source": (f"data.source.path={HERE}",),
    "plan.deepspeed": ("plan=zero2", "--nproc=2"),
    "plan.fsdp": ("plan=fsdp_full_shard", "--nproc=2"),
    "plan.pipelining": ("plan=pp_1f1b", "--nproc=2"),
    "plan.ddp": ("plan=ddp", "--nproc=2"),
    "launch": ("launch=slurm", "launch.nodes=1"),
    "model.quantization": ("adapter=lora",),
    "ema": ("ema=average",),
    "callbacks.push": ("callbacks.push.hub_id=me/model",),
    "callbacks.early_stopping": ("trainer.eval_every=2",),
}
"""Section of a recipe -> overrides under which its keys have an effect."""


def contexts(key: Key) -> tuple[str, ...]:
    """Overrides under which a key has an effect."""
    found = [
        override for part, given in CONTEXTS.items() if f"{key.path}.".startswith(f"{part}.") for override in given
    ]
    found = [override for override in found if override.split("=")[0] != key.path]
    if key.target != "Hub":
        found = [override for override in found if not override.startswith("data.source.")]
    if key.target == "Files" and key.path != "data.source.paths":
        found = [f"data.source.paths=[{HERE}/*.py]", "data.source.format=txt"]
    if key.target == "LatentCollator":
        found = ["model=perceiver_ar_tiny"]
    if key.target.startswith("model="):
        found = [key.target]
    elif key.target:
        option = _options().get((key.path.rpartition(".")[0], key.target))
        found = [*([option] if option else []), *_beside(key, found), *found]
    return tuple(found)


@cache
def _required() -> dict[str, list[str]]:
    """Source component -> its keys that have no default."""
    found: dict[str, list[str]] = {}
    for key in keys():
        if key.path.startswith("data.source.") and key.default == "required":
            found.setdefault(key.target, []).append(key.path)
    return found


def _beside(key: Key, given: list[str]) -> list[str]:
    """Overrides for the other required keys of ``key``'s source: without them the source is refused, not ``key``."""
    if not key.path.startswith("data.source.") or key.target in ("Files", "Hub"):
        return []
    value = HERE / "rows.csv" if key.target == "RowFiles" else HERE
    required = [path for path in _required().get(key.target, []) if path != key.path]
    return [f"{path}={value}" for path in required if not any(text.startswith(f"{path}=") for text in given)]


@cache
def _options() -> dict[tuple[str, str], str]:
    """(section, component) -> the override that chooses the component."""
    found: dict[tuple[str, str], str] = {}
    for group in ("data", "optimizer", "collator", "callbacks", "tracker"):
        for file in sorted((FOLDER / group).glob("*.yaml")):
            for where, target in _targets(yaml.safe_load(file.read_text(encoding="utf-8")), group):
                callback = group in ("callbacks", "tracker")
                part = where.replace("tracker.", "callbacks.")
                names = f"[minimal,{file.stem}]" if group == "callbacks" and file.stem != "default" else file.stem
                found.setdefault(
                    (part, target), f"{group}={names}" if callback or group != "collator" else f"+{group}={file.stem}"
                )
    return found


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node["_target_"].rpartition(".")[2]
        for name, inner in node.items():
            yield from _targets(inner, f"{path}.{name}")


def value_mutations() -> Iterator[Mutation]:
    """Every key of the schema and of the packaged components with every kind of wrong value."""
    for key in [*keys(), *_model_keys()]:
        if key.path == "tracker" or _repeats(key):
            continue
        of_rows = (
            ["learns from documents"] if key.target in _sources_of_rows() else []
        )  # a refusal may say this, since the tiny recipe's task does
        allowed = set(key.type.split(" | "))
        if "list of checkpoints" in allowed:  # names of kinds of files
            allowed |= {"list of str"}
        if "list of str" in allowed or "list" in allowed:
            allowed |= {"str"} if key.default != "required" else set()
        plus = "++" if key.target else ""
        title = f"{key.path} ({key.target})" if key.target else key.path
        for kind, (text, fits) in WRONG.items():
            negative = kind.startswith("negative") and key.path in BELOW_ZERO
            nonsense = not (fits & allowed) and not negative
            if kind == "words" and any(option in text for option in allowed):
                nonsense = False
            if kind == "mapping" and key.path not in NEVER_REQUIRED:
                nonsense = True
            if kind in ("null", "empty list", "empty") and key.path in NEVER_REQUIRED:
                nonsense = False
            given = (*contexts(key), f"{plus}{key.path}={text}")
            # If two keys exclude each other, the message may name the other one first.
            named = (key.path, f" {key.path.rpartition('.')[2]} ", *of_rows)
            if ".NAME." in key.path:  # a part of that name requires more than this key
                named += (f"{key.path.rpartition('.')[0]}.",)
            if ".NUMBER." in key.path:  # an item of a list, which Hydra makes a mapping; the list is named
                named += (f"{key.path.partition('.NUMBER.')[0]} = ",)
            named += ("search.engine._target_",) if key.path.startswith("search.engine.") else ()  # it is not chosen
            named += ("tracker = ",) if key.target in TRACKERS.values() else ()  # its library may not be installed
            yield Mutation(f"{title}: {kind}", given, named, nonsense)
        yield Mutation(
            f"{title}: misspelt",
            (*contexts(key), f"++{_misspelt(key.path)}=1"),
            (_misspelt(key.path),),
            key.path not in ("callbacks",),
        )
        if not allowed & {"mapping", "component", "any"}:
            yield Mutation(f"{title}: a key below it", (*contexts(key), f"++{key.path}.below=1"), (key.path,), True)


def _repeats(key: Key) -> bool:
    """Whether a key is an option that all trackers share: it is tried with TensorBoard."""
    shared = {field.name for field in dataclasses.fields(Tracker)}
    return key.target in TRACKERS.values() and key.target != "TensorBoard" and key.path.rpartition(".")[2] in shared


@cache
def _sources_of_rows() -> set[str]:
    """Names of packaged sources that give rows only."""
    files = (FOLDER / "data").glob("*.yaml")
    targets = {node["_target_"] for file in files for node in _components(yaml.safe_load(file.read_text()))}
    found = [locate(target) for target in targets]
    return {cls.__name__ for cls in found if hasattr(cls, "rows") and not hasattr(cls, "load")}


def _components(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for inner in node.values():
            yield from _components(inner)


def _misspelt(path: str) -> str:
    part, _, name = path.rpartition(".")
    name = name[:-1] + "q" + name[-1:]
    return f"{part}.{name}" if part else name


def _model_keys() -> Iterator[Key]:
    """Fields of the small models' configurations; their types are those of the values."""
    for file in sorted((FOLDER / "model").glob("*_tiny.yaml")):
        if file.stem.removesuffix("_tiny") not in DECODERS:  # the recipe's task is next-token prediction
            continue
        for name, value in yaml.safe_load(file.read_text(encoding="utf-8"))["config"].items():
            kind = {int: "int", float: "float", bool: "bool", str: "str"}.get(type(value), "any")
            yield Key(f"model.config.{name}", f"{kind} | any", str(value), "", f"model={file.stem}")


def environment_mutations() -> Iterator[Mutation]:
    """Nonsense in every environment variable that is read as a number or a name."""
    texts = {
        "words": "some words", "negative": "-3", "fraction": "2.5", "beyond 64 bits": "9" * 40, "empty": "",
        "endless": LONG, "other digits": "\u0663", "exponent": "1e3", "list": "1,2", "NaN": "nan",
        "hexadecimal": "0x10", "spaces": "  ", "sign": "+4",
    }  # fmt: skip
    for name in LEAST:
        for kind, text in texts.items():
            fine = (kind == "empty") or (kind == "list" and name == "OMP_NUM_THREADS")
            yield Mutation(f"${name}: {kind}", environment={name: text}, named=(name,), nonsense=not fine)
    for name in CHOICES:
        for kind in ("words", "negative", "endless", "spaces"):
            yield Mutation(f"${name}: {kind}", environment={name: texts[kind]}, named=(name,), nonsense=True)
    for kind, text in {**texts, "folder": "/tmp", "huge": "0," * 5000 + "x", "path": "/dev/null"}.items():
        yield Mutation(
            f"$CUDA_VISIBLE_DEVICES: {kind}",
            environment={"CUDA_VISIBLE_DEVICES": text},
            named=("CUDA_VISIBLE_DEVICES",),
        )
    for kind, text in {
        "file": "/dev/null",
        "below a file": "/dev/null/a",
        "proc": "/proc/nowhere",
        "endless": LONG,
        "line break": "/tmp/a\nb",
    }.items():
        yield Mutation(
            f"$TRIREME_CACHE: {kind}", environment={"TRIREME_CACHE": text}, named=("TRIREME_CACHE",), nonsense=True
        )
