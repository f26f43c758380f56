"""Import bitsandbytes without its log messages about kernels that trireme does not use."""

from __future__ import annotations

import importlib
import logging
from typing import Any

TALKERS = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions")
"""Loggers that tell of missing kernels for inference, and of every layer whose inputs are cast."""


def hush() -> None:
    """Silence these messages, also where another library imports bitsandbytes and nothing is quantised."""
    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def bitsandbytes(module: str = "functional") -> Any:
    """A module of bitsandbytes."""
    hush()
    return importlib.import_module(f"bitsandbytes.{module}")
