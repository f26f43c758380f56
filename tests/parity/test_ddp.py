"""Tests that DDP gives the losses and gradient norms of a single process at every step, in fp32. Cases include ranks
with different numbers of labels, three ranks, padded documents, and options of the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import training, worst_difference
from helpers.options import witnesses
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from trireme.trainer.build import train

TOLERANCE = 1e-5
MASKS = {"full": [], "uneven": ["+collator._target_=helpers.masking.UnevenMasks"]}
STEPS = ["trainer.max_steps=12", "checkpoint.at_end=false"]
Reference = Callable[[str, str], Path]


def _train(run_dir: Path, overrides: list[str]) -> None:
    train(tiny_recipe(run_dir, *STEPS, *overrides))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The run of one process for a family and masks, whole batches at once; trained once."""

    @cache
    def trained(family: str, masks: str) -> Path:
        run_dir = tmp_path_factory.mktemp("one")
        _train(run_dir, [f"model={family}_tiny", *MASKS[masks], "trainer.micro_batch_size=8"])
        return run_dir

    return trained


@pytest.mark.parametrize(
    ("micro_batch_size", "family", "masks"),
    [(4, "gpt_neox", "full"), (4, "llama", "uneven"), (1, "persimmon", "uneven"), (1, "gpt_neox", "uneven")],
)
def test_two_ranks_equal_one_process(
    tmp_path: Path, reference: Reference, family: str, masks: str, micro_batch_size: int
) -> None:
    overrides = [f"model={family}_tiny", *MASKS[masks], "plan=ddp", f"trainer.micro_batch_size={micro_batch_size}"]
    kept_ranks(_train, 2, tmp_path, overrides)
    one, two = training(reference(family, masks)), training(tmp_path)
    assert one[-1]["step"] == 12
    assert worst_difference(one, two) < TOLERANCE
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    assert one[0]["loss"] != one[-1]["loss"]


def test_three_ranks_and_padded_documents(tmp_path: Path) -> None:
    """A number of ranks that is no power of two, and documents of uneven length instead of blocks."""
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"line {number} " + "word " * (number % 11) + "\n" for number in range(300)))
    overrides = [
        "data=files",
        f"data.source.paths=[{text}]",
        "data.source.split_text=line",
        "data.packing=false",
        "data.deduplicate=false",
        "trainer.global_batch_size=12",
    ]
    _train(tmp_path / "one", [*overrides, "trainer.micro_batch_size=12"])
    kept_ranks(_train, 3, tmp_path / "three", [*overrides, "plan=ddp", "trainer.micro_batch_size=2"])
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "three")) < TOLERANCE


@pytest.mark.parametrize(
    "option",
    [
        "plan.recompute=full",
        "plan.ddp.bucket_cap_mb=1",
        "plan.deterministic=true",
        "plan.ddp.find_unused_parameters=true",
        "plan.ddp.broadcast_buffers=true",
    ],
)
def test_an_option_does_not_change_the_trajectory(
    tmp_path: Path, reference: Reference, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heeded = witnesses(monkeypatch, option)
    run_ranks(_train, 2, tmp_path, ["plan=ddp", option])
    assert all(calls.value for calls in heeded)
    assert worst_difference(training(reference("persimmon", "full")), training(tmp_path)) < TOLERANCE


def test_the_mean_of_rank_means_would_fail(tmp_path: Path) -> None:
    """The uneven masks can show a wrong normalisation, since ranks have different shares of the labels."""
    recipe = tiny_recipe(tmp_path, *MASKS["uneven"])
    from trireme.trainer.data.open_corpus import open_corpus
    from trireme.trainer.tasks.causal_lm import CausalLM

    corpus = open_corpus(recipe.data, recipe.seed, recipe.trainer, CausalLM(), recipe.collator)
    shares = [next(iter(corpus.train_batches({}, 0, 1, rank, 2))).labels for rank in (0, 1)]
    assert abs(shares[0] - shares[1]) > 0.05 * sum(shares)
