"""Sample callback: generate text from given prompts at the end of training and, if asked, after each evaluation.

Sampling does not affect training: generation uses a separate random generator, seeded by (seed, step), and afterwards
every module is put back into its previous mode (train or eval).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ..log_files import SHOWN
from .callback import Callback, Metrics

if TYPE_CHECKING:
    from ...parallel.strategy import Strategy
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
FILE_NAME = "samples.txt"


class Sample(Callback):
    """Continues ``prompts`` on the main rank, prints them, and appends them to ``<run folder>/samples.txt``.

    Args:
        prompts: texts to continue; an empty text starts from the tokenizer's first special token.
        max_new_tokens: number of tokens to generate per prompt, fewer if the model's context is shorter.
        temperature: sampling temperature; 0 always takes the likeliest token.
        top_k: number of likeliest tokens to sample from; 0 samples from all.
        every_evaluation: also generate after each evaluation.
    """

    def __init__(
        self,
        prompts: list[str],
        max_new_tokens: int = 80,
        temperature: float = 0.8,
        top_k: int = 40,
        every_evaluation: bool = False,
    ) -> None:
        if not prompts:
            raise ValueError("prompts=[] leaves nothing to continue; give at least one text")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} is below 1; use 1 or more tokens")
        if temperature < 0:
            raise ValueError(f"temperature={temperature} is negative; use 0 for the likeliest token, or more")
        if top_k < 0:
            raise ValueError(f"top_k={top_k} is negative; use 0 for all tokens, or more")
        self.prompts, self.max_new_tokens = list(prompts), max_new_tokens
        self.temperature, self.top_k, self.every_evaluation = temperature, top_k, every_evaluation
        self._last_step = self._first_step = -1

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if trainer.tokenizer is None or not hasattr(trainer.strategy.module, "generate"):
            raise UserError(
                Problem("callbacks.sample", "this model writes no text", "leave the sample callback out of this recipe")
            )
        if not trainer.strategy.generates:
            log.info("plan %s writes no samples while it trains; `trireme generate RUN` does", trainer.recipe.plan.name)
        if trainer.mesh.is_main and state.step == 0:
            (trainer.run_dir / FILE_NAME).unlink(missing_ok=True)
        self._first_step = state.step

    def on_evaluate(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        if self.every_evaluation:
            self._sample(trainer, state)

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if control.interrupted:  # training goes on later, and a scheduler may not wait
            return
        nothing_new = state.step == self._first_step and _written_at(trainer.run_dir / FILE_NAME, state.step)
        if not trainer.mesh.any_flags([trainer.mesh.is_main and nothing_new])[0]:
            self._sample(trainer, state)

    def _sample(self, trainer: Trainer, state: TrainerState) -> None:
        strategy = trainer.strategy
        takes_part = strategy.generates and (trainer.mesh.is_main or strategy.in_step)
        if not takes_part or state.step == self._last_step:
            return
        self._last_step = state.step
        texts = self.generate(strategy, trainer.tokenizer, trainer.recipe.seed + state.step)
        if not trainer.mesh.is_main:
            return
        if trainer.recipe.run.log_format == "text":
            _show(self.prompts, texts, state.step)
        for text in texts:
            logging.getLogger(SHOWN).info("sample at step %d: %s", state.step, text)
        try:
            with open(trainer.run_dir / FILE_NAME, "a", encoding="utf-8") as file:
                file.writelines(f"--- step {state.step}\n{text}\n\n" for text in texts)
        except OSError as error:
            log.warning("samples.txt cannot be written: %s", error.strerror)

    def generate(self, strategy: Strategy, tokenizer: Any, seed: int) -> list[str]:
        """Each prompt with its continuation. The global random state and the modules' modes stay as they were."""
        import torch

        module, device = strategy.module, strategy.mesh.device
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(seed)
                return [self._continue(strategy, tokenizer, prompt) for prompt in self.prompts]
        finally:
            for part, mode in modes:
                part.training = mode

    def _continue(self, strategy: Strategy, tokenizer: Any, prompt: str) -> str:
        import torch

        ids = tokenizer(prompt)["input_ids"]
        if not ids:
            starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
            ids = [next(token for token in starts if token is not None)]
        limit = getattr(strategy.module.config, "max_position_embeddings", None)
        if limit is not None:
            ids = ids[-max(limit - self.max_new_tokens, 1) :]
        inputs = torch.tensor([ids], device=strategy.mesh.device)
        choice = {"temperature": self.temperature, "top_k": self.top_k} if self.temperature else {}
        output = strategy.generate(
            inputs=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(self.max_new_tokens, limit - 1) if limit else self.max_new_tokens,
            do_sample=self.temperature > 0,
            use_cache=True,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            **choice,
        )
        return tokenizer.decode(output[0], skip_special_tokens=True)


def _written_at(file: Path, step: int) -> bool:
    """Whether the file holds the samples of this step, since the run had ended before."""
    return file.is_file() and f"--- step {step}\n" in file.read_text(encoding="utf-8", errors="replace")


def _show(prompts: list[str], texts: list[str], step: int) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(highlight=False)
    for prompt, text in zip(prompts, texts, strict=True):
        # A model may generate terminal escapes, or characters that the terminal cannot show; neither is printed.
        shown = "".join(char for char in text if char.isprintable() or char in "\n\t")
        shown = shown.encode(console.encoding, "replace").decode(console.encoding)
        body = Text(shown)
        if shown.startswith(prompt):
            body.stylize("bold", 0, len(prompt))
        console.print(Panel(body, title=f"sample at step {step}", title_align="left", border_style="cyan"))
