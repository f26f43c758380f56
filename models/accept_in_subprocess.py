"""Let transformers validate a new model configuration in a subprocess that does not import torch.

Importing torch takes most of the time of importing transformers, and validating a configuration does not need torch.
The subprocess keeps ``trireme check`` fast. A process that has imported transformers without torch could not build a
model later, so the check does not do this in its own process. The subprocess writes the accepted configuration to the
cache (``accepted_configs.py``).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..errors import Problem
from .accepted_configs import recall, remember_refusal
from .model_config import ModelConfig

FIELDS = ("family", "config", "weights", "revision")
"""Parts of a recipe's model that its configuration depends on."""
NO_TORCH = "import of torch halted"
"""Python's words for a package that is marked as missing."""
SECONDS = 60.0
"""Seconds after which the check stops waiting for the subprocess."""


def accept_apart(model: Mapping[str, Any]) -> None:
    """Fill the cache for the ``model`` part of a recipe, which may be malformed. Nothing is done if the cache has it,
    or if this process has imported torch."""
    if "torch" in sys.modules or model.get("architecture") is not None:
        return
    fields = {name: model[name] for name in FIELDS if model.get(name) is not None}
    with suppress(Exception):  # the check finds and reports what is wrong
        known = ModelConfig(**fields)
        if known.own or recall(known) is not None:
            return
        command = [sys.executable, "-m", __spec__.name]
        done = subprocess.run(command, input=json.dumps(fields), text=True, capture_output=True, timeout=SECONDS)
        if done.returncode == 0 and done.stdout:
            remember_refusal(known, [Problem(**problem) for problem in json.loads(done.stdout)])


def main() -> None:
    """Accept the configuration that standard input describes, or print its problems."""
    import gc

    gc.disable()
    sys.modules["torch"] = None  # type: ignore[assignment] # marks the package as missing for Python
    from .check_model import accepted

    _, problems = accepted(ModelConfig(**json.load(sys.stdin)))
    if any(NO_TORCH in problem.why for problem in problems):
        sys.exit(1)  # the configuration asks for more than itself, so the process of the check says what is wrong
    if problems:
        print(json.dumps([dataclasses.asdict(problem) for problem in problems]))


if __name__ == "__main__":
    main()
