"""Tests that ``trireme train`` answers bad input with one message (field, reason, fix) and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command import ROOTS, trireme
from helpers.disk import small_disk
from helpers.recipes import TINY
from trireme.launch.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run ``trireme train`` on the tiny recipe; it must refuse with all ``words``. Returns the message."""

    def run(overrides: list[str], *words: str, roots: bool = True) -> str:
        code = main(["train", str(TINY), *([ROOTS] if roots else []), f"run.dir={tmp_path / 'run'}", *overrides])
        message = capsys.readouterr().err
        assert code == 2, message
        assert "Traceback" not in message
        for word in words:
            assert word in message, message
        return message

    return run


def _files(path: Path) -> list[str]:
    return ["data=files", f"data.source.paths=[{path}]"]


def test_missing_files(refused: Refused, tmp_path: Path) -> None:
    refused(_files(tmp_path / "nowhere" / "*.txt"), "data.source.paths", "nowhere", roots=False)


def test_empty_data(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    refused(_files(tmp_path / "empty.txt"), "data.source", "fix:", roots=False)


def test_text_shorter_than_a_block(refused: Refused, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"short{number}.txt").write_text(f"just a few words {number}")
    refused(
        [*_files(tmp_path / "short*.txt"), "data.held_out=0.3", "data.block_size=128", "trainer.eval_every=null"],
        "data.block_size",
        "fewer than one block",
        roots=False,
    )


def test_undecodable_bytes(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1") * 50)
    refused(_files(tmp_path / "latin.txt"), "latin.txt", "encoding", roots=False)


def test_block_size_over_the_models_limit(refused: Refused) -> None:
    refused(["data.block_size=4096"], "data.block_size = 4096", "max_position_embeddings (128)", "use at most 128")


def test_vocabulary_mismatch(refused: Refused) -> None:
    refused(["model.config.vocab_size=300"], "vocab", "512", "300")


def test_vocabulary_of_a_pretrained_tokenizer(refused: Refused, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(700)} | {"<eos>": 700, "[UNK]": 701}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "tokenizer")
    refused([f"data.tokenizer.path={tmp_path / 'tokenizer'}"], "model.config.vocab_size = 512", "702")


def test_an_unwritable_run_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    refused([], "run.dir", "cannot be written")
    assert (tmp_path / "run").read_text() == "a file, not a folder"


def test_everything_wrong_is_told_at_once(refused: Refused) -> None:
    message = refused(
        [
            "trainer.max_stepz=3",
            "plan.precison=bf16",
            "optimizer.lrr=1",
            "seed=one",
            "trainer.global_batch_size=9",
            "model.config.hidden_sizes=3",
        ],
        "trainer.max_stepz",
        "trainer.max_steps",
        "plan.precison",
        "plan.precision",
        "optimizer.lrr",
        "seed",
    )
    assert message.count("fix:") >= 4


def test_impossible_batch_arithmetic(refused: Refused) -> None:
    refused(
        ["trainer.global_batch_size=9", "model.config.hidden_sizes=3"],
        "trainer.global_batch_size = 9",
        "model.config.hidden_sizes",
        "did you mean model.config.hidden_size",
    )


def test_weights_that_cannot_be_used(refused: Refused, tmp_path: Path) -> None:
    refused([f"model.weights={tmp_path}/nothing"], "model.weights")


def test_a_checkpoint_that_is_none(refused: Refused, tmp_path: Path) -> None:
    refused(["--resume", str(tmp_path / "nothing")], "--resume", "does not exist")
    refused(["--resume", str(tmp_path)], "--resume", "not a complete checkpoint")


def test_a_full_disk_while_data_is_prepared(refused: Refused, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 200 * 1024) as disk:
        refused([f"data.cache_dir={disk}"], "no space is left")
        assert not [path for path in disk.rglob("*") if path.is_file() and path.suffix == ".arrow"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["plan=tp", "--nproc", "8"], ["plan.tensor = 8", "num_attention_heads=4 does not divide", "one of 1, 2, 4"]),
        (["plan=tp", "model.family=nothing", "--nproc", "2"], ["model.family"]),
        (["plan=tp_sp", "data.block_size=33", "--nproc", "2"], ["plan.sequence_parallel", "data.block_size=32"]),
        (["plan=pp_1f1b", "--nproc", "8"], ["plan.pipeline = 8", "has 4 blocks", "trainer.micro_batch_size"]),
        (["plan=pp_gpipe", "plan.pipelining.split=[1,2]", "--nproc", "2"], ["plan.pipelining.split", "model has 4"]),
        (["plan=dp_tp", "--nproc", "3"], ["plan = 'dp_tp'", "3 processes"]),
        (["plan=ddp", "plan.shard=2", "--nproc", "4"], ["plan.shard", "data_parallel"]),
        (["plan=zero2", "plan.pipeline=2", "--nproc", "4"], ["plan.pipeline", "plan=3d_zero1"]),
        (["plan=zero2", "plan.deepspeed.offload_param.device=cpu", "--nproc", "2"], ["offload_param", "stage"]),
        (["plan=zero3_nvme", "--nproc", "2"], ["offload_optimizer.nvme_path", "is required"]),
        (["plan=zero3_nvme", "plan.deepspeed.offload_optimizer.nvme_path=/proc/nowhere/disk", "--nproc", "2"],
         ["nvme_path", "cannot be written"]),
        (["plan=fsdp_full_shard", "optimizer=adafactor", "--nproc", "2"], ["optimizer", "whole tensors"]),
        (["plan=fsdp_full_shard", "plan.fsdp.sharding_strategy=FULL_SHARD", "--nproc", "2"], ["plan=fsdp_full_shard"]),
        (["plan=ddp", "plan.deepspeed=nowhere.json", "--nproc", "2"], ["plan.deepspeed", "does not exist"]),
    ],
    ids=lambda value: ",".join(value[:2]) if isinstance(value, list) and "plan" in value[0] else "",
)  # fmt: skip
def test_impossible_plans(refused: Refused, overrides: list[str], words: list[str]) -> None:
    refused(overrides, *words)


def test_everything_wrong_with_a_plan_is_told_at_once(refused: Refused, tmp_path: Path) -> None:
    """A DeepSpeed file with an unknown key, a contradiction and an illegal combination, and a wrong optimizer."""
    (tmp_path / "ds.json").write_text(
        '{"zero_optimization": {"stage": 2, "overlap_com": true}, "train_batch_size": 7, "gradient_cliping": 1.0,'
        ' "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}'
    )
    message = refused(
        ["plan=zero2", f"plan.deepspeed={tmp_path / 'ds.json'}", "trainer.max_stepz=3", "--nproc", "2"],
        "zero_optimization.overlap_com", "overlap_comm", "train_batch_size", "gradient_cliping", "gradient_clipping",
        "scheduler", "trainer.max_stepz",
    )  # fmt: skip
    assert message.count("fix:") >= 5


def test_a_hub_data_set_without_network_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    result = trireme("train", str(TINY), f"run.dir={tmp_path / 'run'}", "data=hub", "data.source.path=owner/set")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "data.source.path = 'owner/set'" in result.stderr and "nothing is cached" in result.stderr
