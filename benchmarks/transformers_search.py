"""Show whether the hyperparameter search of transformers' Trainer ends or hangs if trials are pruned on two DDP ranks.

``trireme search`` ends in the same case (``tests/dist/test_search.py``).

    python benchmarks/transformers_search.py [--trials 12] [--seconds 120]

``Trainer.hyperparameter_search(backend="optuna")`` searches a tiny GPT-2 under torchrun. It uses the same median pruner
as that test. For each rank, the script prints the trials that have begun and
their last steps. It also prints how the search ended: its exit code and error lines, or killed at the time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=120, help="time limit of the whole study")
    parser.add_argument("--rank-of", metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        search(Path(options.rank_of), options.trials)
        return
    with tempfile.TemporaryDirectory() as folder:
        ended, output = run(Path(folder), options)
        for rank in range(2):
            file = Path(folder) / f"rank{rank}.jsonl"
            lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            last = Counter({line["trial"]: line["step"] for line in lines})
            print(f"rank {rank}: {len(last)} trials begun; last steps {[last[trial] for trial in sorted(last)]}")
        print(ended)
        for line in dict.fromkeys(re.findall(r"^.*(?:Error|Pruned|TrialPruned|Timeout).*$", output, re.MULTILINE)):
            print("   ", line[:160])


def run(folder: Path, options: argparse.Namespace) -> tuple[str, str]:
    """Start the ranks, and kill them at the time limit; returns how they ended, and their output."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517", __file__]
    words += ["--rank-of", str(folder), "--trials", str(options.trials)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=options.seconds)
    except subprocess.TimeoutExpired:
        # torchrun gives each rank a session of its own.
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        return f"not ended within {options.seconds} s: killed", process.communicate()[0]
    return f"ended with exit code {process.returncode}", output


def search(folder: Path, trials: int) -> None:
    """Run one rank of the study."""
    import optuna
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

    rank = int(os.environ["RANK"])

    class Steps(TrainerCallback):
        trial = -1

        def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            Steps.trial += 1

        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            with (folder / f"rank{rank}.jsonl").open("a") as file:
                file.write(json.dumps({"trial": Steps.trial, "step": state.global_step}) + "\n")

    def model(trial=None):  # type: ignore[no-untyped-def]
        set_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=128, n_positions=32))

    torch.manual_seed(0)
    tokens = torch.randint(0, 128, (64, 16)).cumsum(1) % 128
    data = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=4, eval_strategy="steps", eval_steps=1, logging_steps=1,
        per_device_train_batch_size=2, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model_init=model, args=arguments, train_dataset=data, eval_dataset=data[:16], callbacks=[Steps()])
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0, interval_steps=1)
    trainer.hyperparameter_search(
        direction="minimize",
        backend="optuna",
        n_trials=trials,
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=pruner,
    )


if __name__ == "__main__":
    main()
