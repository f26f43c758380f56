"""Train a short run with an experiment tracker in this process, and compare the losses that the tracker recorded with
those in the run's ``metrics.jsonl``.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import tiny_recipe
from trireme.trainer.build import train
from trireme.trainer.loop import TrainResult
from trireme.trainer.trackers.about_run import AboutRun

ARTIFACTS = "[checkpoints,curve,samples,log]"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = b"".join(
    [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(b"\0" + b"\xff\0\0" * 2)),
        _chunk(b"IEND", b""),
    ]
)
"""An image of two pixels."""


def train_tracked(run_dir: Path, *overrides: str) -> TrainResult:
    """Train the tiny recipe with its curve in this process, or resume it."""
    usual = ["callbacks=[default,sample]", "~callbacks.watchdog", "~callbacks.progress", "trainer.log_every=1"]
    usual += ["trainer.eval_every=2", "checkpoint.every=2", "callbacks.sample.max_new_tokens=3"]
    return train(tiny_recipe(run_dir, *usual, *overrides))


def train_twice(run_dir: Path, key: str, *overrides: str, artifacts: str = ARTIFACTS) -> str:
    """Train six steps with a tracker, stopped after three and resumed; returns the id of the run in the tracker."""
    about = [f"callbacks.{key}.{option}" for option in ("project=sea", "group=study", "tags=[long]")]
    about += [f"callbacks.{key}.artifacts={artifacts}"] if artifacts else []
    usual = [f"tracker={key}", *about, "trainer.max_steps=6", *overrides]
    train_tracked(run_dir, *usual, "trainer.stop_at=3")
    first = known_as(run_dir, key)
    train_tracked(run_dir, *usual)
    assert known_as(run_dir, key) == first, "the resume began another run"
    assert not (run_dir / ".tracked").exists(), "links to checkpoints are left"
    return first


def known_as(run_dir: Path, key: str) -> str:
    """The id of the run in a tracker."""
    return json.loads((run_dir / "trackers.json").read_text())[key]["id"]


def same_losses(found: Iterable[tuple[str, int, float]], run_dir: Path) -> None:
    """Assert that a tracker shows every loss once: tag, step, value."""
    wanted = sorted(lines_of(run_dir))
    assert len(wanted) >= 9
    assert sorted(found) == [(tag, step, pytest.approx(value, rel=1e-6)) for tag, step, value in wanted]


def lines_of(run_dir: Path) -> Iterator[tuple[str, int, float]]:
    """The losses in ``metrics.jsonl`` that trackers must show: tag, step, value."""
    for text in (run_dir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name, tag in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
            if name in line:
                yield tag, line["step"], line[name]


def about(folder: Path, **changes: Any) -> AboutRun:
    """The description of a run that trackers get; writes the files that trackers keep into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curve.png").write_bytes(PNG)
    (folder / "samples.txt").write_text("--- step 1\nonce upon a time\n")
    (folder / "log.txt").write_text("a line\n")
    checkpoint = folder / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    config = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "seed": 7, "ema": None, "model": {"family": "llama"}}
    told: dict[str, Any] = {"project": "oars", "name": "first", "group": "study", "trial": 3, "tags": ["long"]}
    return AboutRun(**{"folder": folder, "id": None, "step": 0, "config": config, **told, **changes})
