"""Write run folders with made-up metrics, to test reports without any training."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import yaml

RECIPE: dict[str, Any] = {
    "model": {"family": "persimmon", "weights": None},
    "data": {"eval_sets": {"news": {"_target_": "mine.News"}}},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001},
    "plan": {"name": "pp_1f1b"},
    "trainer": {"max_steps": 100},
}


def lines(steps: int, tokens: int = 64, rate: float = 640.0) -> list[dict[str, Any]]:
    """Training lines of every step, and an evaluation at each tenth."""
    found: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 2 + 4 * math.exp(-step / 30)
        found.append({"step": step, "epoch": step / 50, "loss": loss, "grad_norm": 1 + 1 / step, "lr": 1e-3 / step,
                      "tokens": tokens * step, "tokens_per_second": rate, "memory_mib": 500.0})  # fmt: skip
        if step % 10 == 0:
            evaluated = {"eval_loss": loss + 0.1, "eval_accuracy": step / 200, "eval_news_loss": loss + 0.5}
            found.append({"step": step, **evaluated, "eval_loss/wiki": loss})
    return found


def journal(*events: dict[str, Any]) -> str:
    """The journal of a run with these events; times pass by a minute each."""
    rows = [{"time": f"2026-03-01T10:{minute:02d}:00+00:00", **event} for minute, event in enumerate(events)]
    return "".join(json.dumps(row) + "\n" for row in rows)


STARTED = {
    **{"event": "started", "step": 0, "plan": "pp_1f1b", "ranks": 2, "device": "cpu", "max_steps": 100},
    "references": {"unigram entropy": 5.5},
    "machine": {"host": socket.gethostname(), "processor": "trieste"},
    "versions": {"torch": "2.13"},
}
PLANNED = {"parameters": 4096, "gradients": 4096, "optimizer": 8192, "activations": 2048}
MEASURED = {
    **{"event": "measured", "step": 2, "device": "cpu", "planned": {"memory": PLANNED, "sent": 9000}},
    "memory": {"parameters": 4096, "gradients": 4096, "optimizer": 8200, "total": 2**29},
    "sent": {"send": 8192, "bookkeeping": 64},
    "timeline": [
        {"rank": 0, "actions": [["F", 0, 0, 0.0, 0.01], ["F", 0, 1, 0.01, 0.02], ["B", 0, 0, 0.06, 0.08]]},
        {"rank": 1, "actions": [["F", 1, 0, 0.02, 0.03], ["B", 1, 0, 0.03, 0.06]]},
    ],
}
ENDED = {"event": "ended", "step": 40, "how": "done", "reason": ""}


def write_run(
    folder: Path,
    metrics: list[dict[str, Any]] | None = None,
    recipe: dict[str, Any] | None = None,
    told: str | None = None,
) -> Path:
    """Write a run folder, by default of a complete run of 40 steps."""
    folder.mkdir(parents=True)
    found = lines(40) if metrics is None else metrics
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe or RECIPE))
    (folder / "journal.jsonl").write_text(told if told is not None else journal(STARTED, MEASURED, ENDED))
    return folder
