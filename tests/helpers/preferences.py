"""Preference data for tests of DPO, IPO and KTO, and the losses that tests expect, computed one text at a time as in
the papers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trireme.models.loss import IGNORE
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.rows_corpus import RowsCorpus
from trireme.trainer.data.tokenizer import TokenizerConfig
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.preference import Preference

PAIRS = [
    {"prompt": f"Say {n}.", "chosen": f"{n}! {'Sure. ' * (n % 5)}", "rejected": f"no {n * 7 % 13}{' never' * (n % 3)}"}
    for n in range(40)
]
JUDGED = [
    {"prompt": row["prompt"], "completion": row["chosen" if n % 3 else "rejected"], "label": bool(n % 3)}
    for n, row in enumerate(PAIRS)
]

CHATML = ChatConfig()


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus_of(
    rows: list[dict[str, Any]],
    folder: Path,
    task: Preference,
    chat: ChatConfig | None = CHATML,
    micro: int = 4,
    **options: Any,
) -> RowsCorpus:
    """The corpus of ``rows``, of which nothing is held out."""
    data: dict[str, Any] = {
        "block_size": 64,
        "tokenizer": TokenizerConfig(vocab_size=300),
        "held_out": 0.0,
        "deduplicate": False,
        "cache_dir": str(folder / "cache"),
        **options,
    }
    path = written(rows, folder / "rows.jsonl")
    source = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(path)], "nested": "text"}
    settings = TrainerConfig(max_steps=4, global_batch_size=8, micro_batch_size=micro)
    found = open_corpus(DataConfig(source=source, chat=chat, **data), 0, settings, task)
    assert isinstance(found, RowsCorpus)
    return found


def plain_logp(model: nn.Module, ids: Any, labels: Any) -> tuple[Tensor, int]:
    """Log-probability and number of tokens of an answer, computed from one text, token by token."""
    tokens = torch.as_tensor(ids, dtype=torch.int64)
    logits = model(input_ids=tokens[None]).logits[0].double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for place in range(1, len(tokens)):
        if labels[place] != IGNORE:
            row = logits[place - 1]
            total = total + row[tokens[place]] - row.exp().sum().log()
            count += 1
    return total, count


def plain_pair(kind: str, beta: float, policy: nn.Module, reference: nn.Module, sample: dict[str, Any]) -> Tensor:
    """The loss of one pair, as its paper writes it."""
    ratios, lengths, logps = [], [], []
    for side in ("first", "second"):
        logp, length = plain_logp(policy, sample[f"{side}_ids"], sample[f"{side}_labels"])
        with torch.no_grad():
            other, _ = plain_logp(reference, sample[f"{side}_ids"], sample[f"{side}_labels"])
        ratios.append(logp - other)
        lengths.append(length)
        logps.append(logp)
    if kind == "ipo":
        return (ratios[0] / lengths[0] - ratios[1] / lengths[1] - 1 / (2 * beta)) ** 2
    if kind == "normalised":
        ratios = [ratio / length for ratio, length in zip(ratios, lengths, strict=True)]
    margin = beta * (ratios[0] - ratios[1])
    right, wrong = torch.log(1 + torch.exp(-margin)), torch.log(1 + torch.exp(margin))
    if kind == "smoothed":
        return 0.8 * right + 0.2 * wrong
    return right - 0.5 * logps[0] / lengths[0] if kind == "sft" else right


def plain_judged(
    beta: float, weights: tuple[float, float], policy: nn.Module, reference: nn.Module, samples: list[dict[str, Any]]
) -> Tensor:
    """The sum of the losses of a global batch of KTO, equation 8 of its paper."""
    others = []
    for sample in samples:
        with torch.no_grad():
            one, two = (plain_logp(m, sample["second_ids"], sample["second_labels"])[0] for m in (policy, reference))
        others.append(float(one - two))
    divergence = max(sum(others) / len(others), 0.0)
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        logp, _ = plain_logp(policy, sample["first_ids"], sample["first_labels"])
        with torch.no_grad():
            other, _ = plain_logp(reference, sample["first_ids"], sample["first_labels"])
        ratio, good = logp - other, sample["desirable"]
        value = 1 / (1 + torch.exp(-beta * (ratio - divergence) * (1 if good else -1)))
        total = total + weights[0 if good else 1] * (1 - value)
    assert math.isfinite(divergence)
    return total
