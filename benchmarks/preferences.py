"""Compare trireme's losses of DPO, IPO and KTO with those of TRL, on the same data and model.

Both train the same small Llama in fp32 with AdamW. Every step uses the same eight samples, and the initial weights are
the reference model. The chat template writes nothing after the end of a turn, since only TRL would train on it. For
KTO's KL estimate, TRL pairs a prompt with the answer of the previous sample, and trireme with that of the next. So TRL
gets the samples in the opposite order. The result is the largest relative difference of loss and gradient norm over all
steps.

    python benchmarks/preferences.py                     # a minute on one core

TRL is imported from ``build/trl`` (``trl_folder.py``): pip install --no-deps --target build/trl trl==1.16.0
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from trl_folder import add_trl

ROOT = Path(__file__).parents[1]
ROWS, STEPS, LENGTH, VOCABULARY, RATE = 8, 5, 96, 400, 5e-3
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "DPO": (["task=dpo"], {"loss_type": "sigmoid"}),
    "DPO, length-normalised": (
        ["task=dpo", "task.length_normalised=true", "task.beta=2"],
        {"loss_type": "sigmoid_norm"},
    ),
    "IPO": (["task=ipo", "task.beta=0.5"], {"loss_type": "ipo"}),
    "KTO": (["task=kto", "task.undesirable_weight=1.5"], {"undesirable_weight": 1.5}),
}
"""Name of a loss -> (overrides of trireme's recipe, arguments of TRL's configuration)."""
Lines = list[tuple[float, float]]
"""Loss and gradient norm of each step."""


def rows(kto: bool) -> list[dict[str, Any]]:
    found = []
    for number in range(ROWS):
        prompt = [{"role": "user", "content": f"Say {number} {'please ' * (number % 3)}"}]
        answers = [f"{number}. {'Sure! ' * (number % 4)}", f"No, {number * 7 % 5}{' never' * (number % 2)}."]
        chosen, rejected = ([{"role": "assistant", "content": text.strip()}] for text in answers)
        if kto:
            found.append({"prompt": prompt, "completion": rejected if number % 3 else chosen, "label": number % 3 == 0})
        else:
            found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return found


def prepare(folder: Path) -> None:
    """Write a model and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trireme.trainer.data.chat.chat_tokenizer import add_control_tokens
    from trireme.trainer.data.tokenizer import TokenizerConfig, train_tokenizer

    texts = [json.dumps(row) for row in rows(False)] * 20
    tokenizer: Any = train_tokenizer(TokenizerConfig(vocab_size=VOCABULARY - 8), lambda: texts)
    add_control_tokens(tokenizer, ["<|im_start|>", "<|im_end|>", "<|pad|>"])
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = "<|im_end|>", "<|pad|>", TEMPLATE
    tokenizer.split_special_tokens = False
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")


def with_trireme(folder: Path, kind: str) -> Lines:
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.metrics import training
    from helpers.recipes import TINY, recipe_of
    from trireme.trainer.build import train

    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(kind == "KTO")))
    recipe = recipe_of(
        TINY,
        folder / "run",
        *("model=pretrained", f"model.weights={folder / 'model'}", "data=preferences", f"data.source.paths=[{source}]"),
        *(
            f"data.block_size={LENGTH}",
            "data.held_out=0",
            f"data.tokenizer.vocab_size={VOCABULARY}",
            f"data.cache_dir={folder / 'cache'}",
        ),
        *(
            f"optimizer.lr={RATE}",
            "optimizer.betas=[0.9,0.999]",
            "optimizer.weight_decay=0",
            "trainer.max_grad_norm=1.0",
        ),
        *(f"trainer.global_batch_size={ROWS}", "trainer.micro_batch_size=4", f"trainer.max_steps={STEPS}"),
        *("trainer.eval_every=null", "trainer.eval_at_end=false", "checkpoint.at_end=false", "trainer.log_every=1"),
        *KINDS[kind][0],
    )
    train(recipe)
    return [(line["loss"], line["grad_norm"]) for line in training(folder / "run")]


def with_trl(folder: Path, kind: str) -> Lines:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    arguments: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": ROWS,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "max_length": LENGTH,
        "beta": next((float(each.split("=")[1]) for each in KINDS[kind][0] if each.startswith("task.beta")), 0.1),
        **KINDS[kind][1],
    }
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    data = Dataset.from_list(rows(kind == "KTO")[::-1])
    config, trainer = (KTOConfig, KTOTrainer) if kind == "KTO" else (DPOConfig, DPOTrainer)
    ran = trainer(model=model, args=config(**arguments), train_dataset=data, processing_class=tokenizer)
    ran.train()
    return [(line["loss"], line["grad_norm"]) for line in ran.state.log_history if "loss" in line]


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    add_trl()
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder)
            ours, theirs = with_trireme(folder, kind), with_trl(folder, kind)
        assert len(ours) == len(theirs) == STEPS
        worst = [max(abs(a[at] - b[at]) / abs(a[at]) for a, b in zip(ours, theirs, strict=True)) for at in (0, 1)]
        losses = ", ".join(f"{loss:.4f}" for loss, _ in ours)
        print(f"{kind}: losses {losses}; greatest difference {worst[0]:.1e} of the loss, {worst[1]:.1e} of the norm")


if __name__ == "__main__":
    main()
