"""Cache of the model configurations that transformers has accepted, so that checking them again is fast.

Importing transformers takes longer than the rest of ``trireme check``. Whether transformers accepts a configuration
depends only on its version, the model family and the fields. Accepted configurations are therefore stored in the cache
folder, and transformers is imported only for others: new ones, those with parts (vision, audio), and those of a user's
own class. Models are always built by transformers itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import Problem
from .model_config import ModelConfig, given_fields, hf_config

RULES = ("check_model.py", "config_errors.py", "check_config_numbers.py")
"""Files whose checks a configuration also passed; when they change, every configuration is checked again."""


_refused: dict[str, list[Problem]] = {}
"""Problems of configurations that were refused in this process, by the names of their files."""


class AcceptedConfig(SimpleNamespace):
    """Values of a transformers configuration, under all of its field names."""

    def get_text_config(self) -> AcceptedConfig:
        """Itself, since configurations with parts (vision, audio) are not cached."""
        return self


def accepted_config(model: ModelConfig) -> Any:
    """The configuration, to be read only; an accepted one comes from the cache, without importing transformers."""
    return recall(model) or hf_config(model)


def recall(model: ModelConfig) -> AcceptedConfig | None:
    """The cached configuration of the model; None if transformers has never accepted it, or its class may change."""
    if model.own:
        return None
    try:
        return AcceptedConfig(**json.loads(_file(model).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def refusal(model: ModelConfig) -> list[Problem]:
    """Problems of the configuration, if it was refused before in this process; else none."""
    return [] if model.own or not _refused else _refused.get(_file(model).name, [])


def remember_refusal(model: ModelConfig, problems: list[Problem]) -> None:
    """Keep the problems of a configuration that was refused."""
    _refused[_file(model).name] = problems


def remember(model: ModelConfig, config: Any) -> None:
    """Cache the configuration that transformers made of the model's fields, if the cache folder can be written."""
    if model.own or config.get_text_config() is not config:
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
    """Fields, their aliases and the properties of the configuration class, as far as JSON can hold them."""
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
    """Cache file of the model's configuration.

    Raises:
        TypeError: a field cannot be written as JSON.
    """
    rules = [(Path(__file__).with_name(name)).stat().st_mtime_ns for name in RULES]
    key = json.dumps([version("transformers"), rules, model.spec.model_type, given_fields(model)], sort_keys=True)
    root = Path(os.path.expanduser(os.environ.get("TRIREME_CACHE") or "~/.cache/trireme"))
    return root / "configs" / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.json"
