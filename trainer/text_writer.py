"""Generate texts for the samples of an evaluation, or for the first ones only, and score them against the reference
texts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import Problem, UserError
from ..models.loss import IGNORE
from ..parallel.micro_batch import MicroBatch
from ..parallel.strategy import Strategy
from .generation import GenerationConfig
from .tasks.task import Sums, Task
from .tasks.text_scores import text_sums

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TextWriter:
    """Writes a text for each sample of a micro-batch; all ranks call it together."""

    strategy: Strategy
    task: Task
    tokenizer: Any
    seed: int
    generation: GenerationConfig

    def __post_init__(self) -> None:
        able = hasattr(self.strategy.module, "generate") and self.tokenizer is not None
        if self.strategy.generates and able:
            return
        why, fix = "generates text, but this model cannot do so", "leave the part generation out"
        if not self.strategy.generates:
            why = f"generates text, but under plan {self.strategy.plan.name} no rank has the whole model"
            fix = f"{fix}, or choose a plan without pipeline stages"
        raise UserError(Problem("generation", why, fix))

    def due(self, number: int, rows: int) -> bool:
        """Whether micro-batch ``number`` gets texts; equal on all ranks, which must write together."""
        first = number * self.strategy.mesh.data_size * rows
        return self.generation.samples is None or first < self.generation.samples

    def __call__(self, micro: MicroBatch) -> tuple[Sums, dict[str, Any]]:
        """Sums of the scores, and the parts of the records: the text ``written`` and the one ``wanted``, by sample."""
        written = self._written(micro)
        wanted = [self._text(row) for row in micro.targets["labels"]]
        real = [row for row, index in enumerate(micro.samples.tolist()) if index >= 0]
        pairs = [written[row] for row in real], [wanted[row] for row in real]
        return text_sums(self.generation.scores, *pairs), {"written": written, "wanted": wanted}

    def _written(self, micro: MicroBatch) -> list[str]:
        device = self.strategy.mesh.device
        prompt = self.task.prompt(micro.inputs, micro.targets)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(_seed(self.seed, micro.samples))
            tokens = self.strategy.generate(
                **prompt, **self.generation.arguments(), use_cache=True, pad_token_id=self._padding()
            )
        begun = 1 if self.strategy.module.config.is_encoder_decoder else prompt["input_ids"].shape[1]
        return self.tokenizer.batch_decode(tokens[:, begun:], skip_special_tokens=True)

    def _text(self, labels: Tensor) -> str:
        return self.tokenizer.decode(labels[labels != IGNORE], skip_special_tokens=True)

    def _padding(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in known if token is not None)


def _seed(seed: int, samples: Tensor) -> int:
    """Seed of a micro-batch's draws. Micro-batches hold the same samples under every plan."""
    key = f"{seed}/texts/{samples.tolist()}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
