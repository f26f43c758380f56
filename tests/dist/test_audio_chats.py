"""Tests of chats with audio: labels, the same losses under DDP, ZeRO and FSDP plans, answers that depend on the clip,
and refusals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.equals_one_process import equals_one_process
from helpers.kept_ranks import kept_ranks
from helpers.media_chats import TEXT, asked, byte_tokenizer, chatml, named_tokens, qwen2_audio
from helpers.metrics import lines
from helpers.recipes import recipe_of
from trireme.errors import UserError
from trireme.launch.cli import main
from trireme.models.loss import IGNORE
from trireme.trainer.build import train
from trireme.trainer.data_report import report_data

soundfile = pytest.importorskip("soundfile")
RATE = 16_000
PITCHES = {"low": 200, "middle": 800, "high": 3000}
AUDIO_ENCODER = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 50,
}
"""Sizes of an audio encoder for clips of one second."""
FLAMINGO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2AudioForConditionalGeneration": {
        "model_type": "qwen2_audio",
        "audio_token_id": 3,
        "text_config": {**TEXT, "model_type": "qwen2"},
        "audio_config": {"model_type": "qwen2_audio_encoder", **AUDIO_ENCODER},
    },
    "AudioFlamingo3ForConditionalGeneration": {
        "model_type": "audioflamingo3",
        "audio_token_id": 3,
        "text_config": {**TEXT, "model_type": "qwen2"},
        "audio_config": {
            "model_type": "audioflamingo3_encoder",
            "num_mel_bins": 16,
            "max_source_positions": 50,
            **FLAMINGO,
        },
    },
    "Qwen3ASRForConditionalGeneration": {
        "model_type": "qwen3_asr",
        "audio_token_id": 3,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "text_config": {**TEXT, "model_type": "qwen3", "head_dim": 16},
        "audio_config": {
            "model_type": "qwen3_asr_encoder",
            "downsample_hidden_size": 16,
            "output_dim": 32,
            "n_window": 50,
            **AUDIO_ENCODER,
        },
    },
}
"""Qwen2-Audio pads clips to one length, Audio Flamingo 3 cuts them into windows, and Qwen3-ASR keeps their lengths."""


def _processor(architecture: str) -> Any:
    import transformers

    if architecture.startswith("Qwen2"):
        return qwen2_audio()
    if architecture.startswith("Qwen3"):
        tokenizer = named_tokens(audio_token="<audio>", audio_bos_token="<begin>", audio_eos_token="<end>")
        extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=16, n_window=50)
        return transformers.Qwen3ASRProcessor(extractor, tokenizer, chat_template=chatml("audio"))
    return transformers.AudioFlamingo3Processor(
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        byte_tokenizer("<audio>"),
        chatml("audio"),
        audio_token="<audio>",
        max_audio_len=2,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rows = tmp_path_factory.mktemp("audio_chats"), []
    random = np.random.default_rng(0)
    for number in range(48):
        pitch = list(PITCHES)[number % 3]
        times = np.arange(int(RATE * (0.3 + 0.6 * random.random()))) / RATE
        samples = 0.5 * np.sin(2 * np.pi * PITCHES[pitch] * times) + 0.05 * random.standard_normal(len(times))
        file = folder / f"{number}.wav"
        soundfile.write(file, np.stack([samples, samples], 1)[:: 1 + number % 2], RATE // (1 + number % 2))
        rows.append(asked("Pitch?", pitch, {"type": "audio", "path": str(file)}))
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    for architecture, config in MODELS.items():
        _processor(architecture).save_pretrained(folder / architecture)
        (folder / f"{architecture}.yaml").write_text(
            "# Answers which pitch a clip has.\n# trireme train audio_chats.yaml\n"
            "defaults: [/base, /data: chat, override /task: multimodal_chat, override /callbacks: minimal, _self_]\n"
            + json.dumps(
                {"model": {"family": "auto", "architecture": f"transformers.{architecture}", "config": config}}
            )[1:-1]
            + f"\ndata: {{source: {{paths: [{folder}/chats.jsonl]}}, processor: {folder / architecture}, "
            "block_size: 80, held_out: 0.2, packing: false}\n"
            "trainer: {max_steps: 4, global_batch_size: 8, micro_batch_size: 4, log_every: 1}\n"
            "optimizer: {lr: 3e-3}\nscheduler: {warmup_ratio: 0.1}\nseed: 1\n"
        )
    return folder


def _train(folder: Path, architecture: str, run: str, *overrides: str) -> str:
    try:
        train(recipe_of(folder / f"{architecture}.yaml", folder / run, *overrides))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("architecture", MODELS)
def test_labels_are_the_answers(architecture: str, folder: Path) -> None:
    """Labels are the answer and its end; no token of a clip has a label."""
    recipe = recipe_of(folder / f"{architecture}.yaml", folder / "none")
    tokenizer = _processor(architecture).tokenizer
    for shown in report_data(recipe, 4).samples:
        ids, labels = shown.collated.inputs["input_ids"], shown.collated.targets["labels"]
        answer = tokenizer.decode(labels[labels != IGNORE])
        assert answer.removesuffix("<|im_end|>") in PITCHES and answer.endswith("<|im_end|>")
        assert (ids == 3).sum() > 4 and 3 not in labels
        assert tokenizer.decode(ids[np.flatnonzero(labels != IGNORE)]).startswith("\n")


PLANS = ("ddp", "zero2", "zero3", "fsdp_full_shard", "fsdp_hybrid_shard")
QUICK = {
    ("Qwen2AudioForConditionalGeneration", "fsdp_full_shard"),
    ("AudioFlamingo3ForConditionalGeneration", "ddp"),
    ("Qwen3ASRForConditionalGeneration", "ddp"),
}


@pytest.mark.parametrize(
    ("architecture", "plan"),
    [
        pytest.param(architecture, plan, marks=() if (architecture, plan) in QUICK else pytest.mark.long)
        for architecture in MODELS
        for plan in PLANS
    ],
)
def test_ranks_train_as_one(architecture: str, plan: str, folder: Path) -> None:
    equals_one_process(_train, folder, architecture, plan)


def test_a_model_learns_to_name_pitches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run names the pitches of clips, and so does its export."""
    architecture = "Qwen2AudioForConditionalGeneration"
    steps = ("trainer.log_every=50", "checkpoint.every=75", "+generation.max_new_tokens=12")
    assert kept_ranks(_train, 1, folder, architecture, "learnt", "trainer.max_steps=75", *steps) == [""]
    assert kept_ranks(_train, 1, folder, architecture, "learnt", "trainer.max_steps=150", *steps) == [""]
    last = [line for line in lines(folder / "learnt") if "eval_accuracy" in line][-1]
    assert last["eval_accuracy"] > 0.9 and last["eval_exact_match"] > 0.7
    exported = str(folder / "exported")
    assert main(["export", str(folder / "learnt"), exported]) == 0
    options = '--chat --audio FILE --prompt "..."'
    assert f"trireme generate {exported} {options}" in capsys.readouterr().err
    assert f"trireme generate {folder}/learnt {options}" in (folder / "learnt" / "log.txt").read_text()
    for number, pitch in enumerate(PITCHES):
        options = ["--prompt", "Pitch?", "--audio", str(folder / f"{number}.wav"), "--temperature", "0"]
        assert main(["generate", exported, "--chat", *options]) == 0
        assert capsys.readouterr().out.strip() == pitch
    (folder / "asked.json").write_text(json.dumps(asked("Pitch?", "", {"type": "audio", "path": "none.wav"})[:1]))
    assert main(["generate", exported, "--chat", str(folder / "asked.json")]) == 2
    assert "there is no file none.wav" in capsys.readouterr().err
    pytest.importorskip("PIL.Image").new("RGB", (8, 8)).save(folder / "a.png")
    image = ["--prompt", "Pitch?", "--image", str(folder / "a.png")]
    assert main(["generate", exported, "--chat", *image]) == 2
    assert "reads texts and audio clips, but the conversation has an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.block_size=8",), "its audio clips end at token"),
        (("task=image_chat",), "no images among tokens (image_token)"),
    ],
)
def test_wrong_recipes_are_refused(overrides: tuple[str, ...], words: str, folder: Path) -> None:
    assert words in _train(folder, "Qwen2AudioForConditionalGeneration", "refused", *overrides)
