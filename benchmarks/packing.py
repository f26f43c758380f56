"""Measure the training throughput of packed documents in trireme. It is compared with packing in TRL, and with padding
in transformers' Trainer.

All train the same small Llama in fp32 with AdamW on the same texts: the functions of Python's standard library, cut at
the same length, each read once. Throughput counts useful tokens per second: the tokens of the texts, without padding.
Each library runs in its own process. They take turns, so that changes in the machine's speed affect all. The result is
the median ratio of neighbouring turns, in elapsed time and in CPU time, which other load disturbs less. The share of
useful tokens among all computed positions is printed too.

    python benchmarks/packing.py                         # some ten minutes on two idle cores
    python benchmarks/packing.py --rounds 1 --rows 128

Without TRL in ``build/trl``, Trainer alone is compared: pip install --no-deps --target build/trl trl==1.16.0
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from trl_folder import TRL, add_trl

ROOT = Path(__file__).parents[1]
LENGTH, VOCABULARY = 1024, 4096
PADDED_ROWS, PACKED_ROWS = 8, 2
"""Rows of a step; both hold about the same number of useful tokens."""
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": LENGTH,
}
WARM = 2
"""Steps before the clock starts."""


class Clock:
    """Counts useful tokens, computed positions and time, from the third step on."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.times: list[tuple[float, float]] = []

    def tick(self) -> None:
        """Note the time at the end of a step."""
        self.times.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, float]:
        useful, positions = (sum(step[part] for step in self.steps[WARM : len(self.times)]) for part in (0, 1))
        clock, processor = (self.times[-1][part] - self.times[WARM - 1][part] for part in (0, 1))
        return {"clock": useful / clock, "processor": useful / processor, "fill": useful / positions, "tokens": useful}


def rows(count: int) -> Iterator[str]:
    """Functions of the standard library, ordered by hash."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(errors="ignore")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (part := ast.get_source_segment(text, node)):
                found.append(part)
    found = sorted(set(found), key=lambda part: hash_of(part))
    yield from found[:count]


def hash_of(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode()).hexdigest()


def with_trireme(folder: Path) -> dict[str, float]:
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.recipes import recipe_of
    from trireme.parallel.mesh import build_mesh
    from trireme.trainer.build import build
    from trireme.trainer.callbacks.callback import Callback

    clock = Clock()

    class Noted(Callback):
        def on_step_end(self, trainer: Any, state: Any, control: Any) -> None:
            micros = trainer.batch.micro_batches
            clock.steps.append((trainer.batch.tokens, sum(micro.inputs["input_ids"].numel() for micro in micros)))
            clock.tick()

    config = [f"model.config.{name}={value}" for name, value in MODEL.items()]
    recipe = recipe_of(
        ROOT / "tests" / "recipes" / "tiny.yaml",
        folder / "run",
        *("model=llama_tiny", *config, "data=files", f"data.source.paths=[{folder / 'rows.jsonl'}]", "data.held_out=0"),
        *(f"data.tokenizer.path={folder / 'tokenizer'}", f"data.block_size={LENGTH}", "data.packing=bins"),
        *(f"trainer.global_batch_size={PACKED_ROWS}", f"trainer.micro_batch_size={PACKED_ROWS}", "trainer.epochs=1"),
        *("trainer.max_steps=null", "trainer.eval_every=null", "trainer.eval_at_end=false", "checkpoint.at_end=false"),
        *("optimizer.lr=1e-4", f"data.cache_dir={folder / 'cache'}", "trainer.log_every=10"),
    )
    (folder / "run").mkdir()
    mesh = build_mesh(recipe.plan)
    trainer = build(recipe, mesh)
    trainer.callbacks.clear()
    trainer.callbacks.add("noted", Noted())
    trainer.fit()
    mesh.close()
    return clock.result()


def llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**MODEL, use_cache=False))


def arguments(folder: Path, batch: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
    }


def noted(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Noted(TrainerCallback):
        def on_step_end(self, *given: Any, **others: Any) -> None:
            clock.tick()

    return Noted()


def counted(collator: Any, clock: Clock) -> Any:
    """Wrap ``collator`` to count the useful tokens and the positions of each batch."""

    def collate(samples: Any) -> Any:
        batch = collator(samples)
        ids = batch["input_ids"]
        useful = int(batch["attention_mask"].sum()) if "attention_mask" in batch else ids.numel()
        clock.steps.append((useful, ids.numel()))
        return batch

    return collate


def with_transformers(folder: Path) -> dict[str, float]:
    from datasets import load_dataset
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer, clock = AutoTokenizer.from_pretrained(folder / "tokenizer"), Clock()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "hf"))
    end = tokenizer.eos_token_id
    data = data.map(
        lambda row: {"input_ids": [*tokenizer(row["text"])["input_ids"], end][:LENGTH]}, remove_columns="text"
    )
    collator = counted(DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=8), clock)
    options = TrainingArguments(**arguments(folder, PADDED_ROWS))
    Trainer(llama(), options, collator, data, callbacks=[noted(clock)]).train()
    return clock.result()


def with_trl(folder: Path) -> dict[str, float]:
    add_trl()
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer, clock = AutoTokenizer.from_pretrained(folder / "tokenizer"), Clock()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "hf"))
    options = SFTConfig(**arguments(folder, PACKED_ROWS), packing=True, max_length=LENGTH)
    trainer = SFTTrainer(llama(), options, train_dataset=data, processing_class=tokenizer, callbacks=[noted(clock)])
    trainer.data_collator = counted(trainer.data_collator, clock)
    trainer.train()
    return clock.result()


LIBRARIES = {"trireme": with_trireme, "transformers": with_transformers, "trl": with_trl}


def prepare(folder: Path, count: int) -> None:
    """Write the rows, and a tokenizer that is trained on them."""
    from trireme.trainer.data.tokenizer import TokenizerConfig, load_or_train

    texts = list(rows(count))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = TokenizerConfig(vocab_size=VOCABULARY)
    load_or_train(config, lambda: iter(texts), "packing", str(folder)).save_pretrained(folder / "tokenizer")


def measured(library: str, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for name in ("rows.jsonl", "tokenizer"):
            (Path(own) / name).symlink_to(folder / name)
        command = [sys.executable, __file__, "--library", library, "--folder", own]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{library} failed:\n{ended.stderr[-3000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.library:
        print(json.dumps(LIBRARIES[options.library](options.folder)))
        return
    libraries = [library for library in LIBRARIES if library != "trl" or TRL.is_dir()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.rows)
        turns = [{library: measured(library, folder) for library in libraries} for _ in range(options.rounds)]
    for library in libraries:
        rates, ratios = [], []
        for by in ("clock", "processor"):
            rates.append(statistics.median(turn[library][by] for turn in turns))
            ratios.append(statistics.median(turn["trireme"][by] / turn[library][by] for turn in turns))
        about = f"fill {turns[0][library]['fill']:.1%} of {turns[0][library]['tokens']:.0f} tokens"
        shown = f"{rates[0]:.0f} useful tokens/s by the clock, {rates[1]:.0f} on the processor, {about}"
        print(f"{library}: {shown}; trireme's rates are {ratios[0]:.2f} and {ratios[1]:.2f} times as high")


if __name__ == "__main__":
    main()
