"""Configurations of models that have been accepted before, so that a check need not import transformers again.

An import of transformers takes longer than the rest of ``trireme check``. What it says of a model's fields depends on
its version, the family and the fields alone; so what has been accepted is kept in the cache folder, and only a
configuration that was never seen on this machine is given to it. Models are always built by transformers itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .model_config import ModelConfig, given_fields, hf_config

RULES = ("check_model.py", "head_arithmetic.py")
"""What else accepts a configuration; when these files change, all are looked at again."""


class AcceptedConfig(SimpleNamespace):
    """What can be read off a transformers configuration, by all of its names."""

    def get_text_config(self) -> AcceptedConfig:
        """Itself: a configuration with parts (vision, audio) is not kept."""
        return self


def accepted_config(model: ModelConfig) -> Any:
    """The configuration, for reading: without transformers where it has been accepted before."""
    return recall(model) or hf_config(model)


def recall(model: ModelConfig) -> AcceptedConfig | None:
    """What transformers made of the model's fields before; None where it was never asked, or refused them."""
    try:
        return AcceptedConfig(**json.loads(_file(model).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remember(model: ModelConfig, config: Any) -> None:
    """Keep what transformers made of the model's fields; where nothing can be written, nothing is kept."""
    if config.get_text_config() is not config:
        return
    try:
        file = _file(model)
        text = json.dumps(_readable(config))
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        os.replace(partial, file)
    except (OSError, TypeError, ValueError):
        return


def _readable(config: Any) -> dict[str, Any]:
    """Fields, their other names, and properties of the family's own, as far as JSON can hold them."""
    own = [name for name, member in vars(type(config)).items() if isinstance(member, property)]
    found = config.to_dict()
    for name in (*config.attribute_map, *own, "attribute_map"):
        value = getattr(config, name, None)
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        found[name] = value
    return found


def _file(model: ModelConfig) -> Path:
    """Where it is kept; TypeError for fields that JSON does not have."""
    rules = [(Path(__file__).with_name(name)).stat().st_mtime_ns for name in RULES]
    key = json.dumps([version("transformers"), rules, model.spec.model_type, given_fields(model)], sort_keys=True)
    root = Path(os.environ.get("TRIREME_CACHE") or "~/.cache/trireme").expanduser()
    return root / "configs" / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.json"
