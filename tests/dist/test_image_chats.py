"""Tests of training on chats with images: labels are the answers, losses under DDP, ZeRO and FSDP plans equal those of
one process, a trained model's answers depend on the image, and unsupported recipe options end in an error.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.equals_one_process import equals_one_process
from helpers.kept_ranks import kept_ranks
from helpers.media_chats import TEXT, asked, byte_tokenizer, chatml, qwen_vl, smolvlm
from helpers.metrics import lines
from helpers.recipes import recipe_of
from trireme.errors import UserError
from trireme.launch.cli import main
from trireme.models.loss import IGNORE
from trireme.trainer.build import train
from trireme.trainer.data_report import report_data

pytest.importorskip("PIL")
pytest.importorskip("num2words")  # SmolVLM
COLOURS = {"red": (220, 30, 30), "green": (20, 170, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}
SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}
MODELS: dict[str, dict[str, Any]] = {
    "LlavaForConditionalGeneration": {
        "model_type": "llava",
        "image_token_index": 3,
        "vision_feature_layer": -1,
        "text_config": TEXT,
        "vision_config": {"model_type": "clip_vision_model", "patch_size": 8, "image_size": 16, **VISION},
    },
    "Idefics3ForConditionalGeneration": {
        "model_type": "idefics3",
        "image_token_id": 3,
        "scale_factor": 2,
        "text_config": {**TEXT, "pad_token_id": 0},
        "vision_config": {"patch_size": 4, "image_size": 16, **VISION},
    },
    "SmolVLMForConditionalGeneration": {
        "model_type": "smolvlm",
        "image_token_id": 3,
        "scale_factor": 2,
        "text_config": {**TEXT, "pad_token_id": 0},
        "vision_config": {"patch_size": 4, "image_size": 16, **VISION},
    },
    "Qwen2_5_VLForConditionalGeneration": {
        "model_type": "qwen2_5_vl",
        "image_token_id": 3,
        "video_token_id": 4,
        "vision_start_token_id": 5,
        "vision_end_token_id": 6,
        "text_config": {
            **TEXT,
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
}

FROZEN = ["model.vision_tower.post_layernorm.*"]
"""Parameters that get no gradient, because LLaVA takes the features of an image before them."""


def _processor(architecture: str) -> Any:
    if architecture.startswith("SmolVLM"):
        return smolvlm(byte_tokenizer(*SPECIAL))
    if architecture.startswith("Qwen"):
        return qwen_vl("Qwen2_5_VLProcessor", byte_tokenizer("<|image_pad|>", "<|video_pad|>", *SPECIAL[1:3]))
    if architecture.startswith("Llava"):
        from transformers import CLIPImageProcessorPil, LlavaProcessor

        size = {"height": 16, "width": 16}
        images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
        return LlavaProcessor(
            images,
            byte_tokenizer(*SPECIAL),
            8,
            "default",
            chat_template=chatml("image"),
            image_token="<image>",
            num_additional_image_tokens=1,
        )
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor

    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    return Idefics3Processor(images, byte_tokenizer(*SPECIAL), image_seq_len=4, chat_template=chatml("image"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder, rows = tmp_path_factory.mktemp("images"), []
    random = np.random.default_rng(0)
    for number in range(48):
        colour = list(COLOURS)[number % 4]
        noise = random.integers(-20, 20, (16, 16, 3))
        pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        rows.append(asked("Colour?", colour, {"type": "image", "path": str(file)}))
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    for architecture, config in MODELS.items():
        _processor(architecture).save_pretrained(folder / architecture)
        (folder / f"{architecture}.yaml").write_text(
            "# Answers what colour an image has.\n# trireme train images.yaml\n"
            "defaults: [/base, /data: chat, override /task: image_chat, override /callbacks: minimal, _self_]\n"
            + json.dumps(
                {
                    "model": {
                        "family": "auto",
                        "architecture": f"transformers.{architecture}",
                        "frozen": FROZEN if "Llava" in architecture else [],
                        "config": config,
                    }
                }
            )[1:-1]
            + f"\ndata: {{source: {{paths: [{folder}/chats.jsonl]}}, processor: {folder / architecture}, "
            "block_size: 64, held_out: 0.2, packing: false}\n"
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
    """Tokens are those that the processor gives for the whole conversation; labels spell the answer and its end."""
    recipe = recipe_of(folder / f"{architecture}.yaml", folder / "none")
    tokenizer = byte_tokenizer(*SPECIAL)
    for shown in report_data(recipe, 4).samples:
        ids, labels = shown.collated.inputs["input_ids"], shown.collated.targets["labels"]
        answer = tokenizer.decode(labels[labels != IGNORE])
        assert answer.removesuffix("<|im_end|>") in COLOURS and answer.endswith("<|im_end|>")
        assert (ids == 3).sum() == 4  # tokens of one image
        assert tokenizer.decode(ids[np.flatnonzero(labels != IGNORE)]).startswith("\n")


PLANS = ("ddp", "zero2", "zero3", "fsdp_full_shard", "fsdp_hybrid_shard")
QUICK = {
    ("LlavaForConditionalGeneration", "fsdp_full_shard"),
    ("Idefics3ForConditionalGeneration", "ddp"),
    ("Qwen2_5_VLForConditionalGeneration", "ddp"),
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


def test_layers_that_the_loss_does_not_use_are_left_out(folder: Path) -> None:
    """Features are taken before the last layer of the vision tower; the message says how to go on."""
    architecture, options = "LlavaForConditionalGeneration", ("adapter=lora", "model.config.vision_feature_layer=-2")
    message = _train(folder, architecture, "refused", *options, "model.frozen=[]")
    (override,) = re.findall('"(model[.]adapter[.]exclude=.*?)"', message)
    assert "model.vision_tower.encoder.layers.1" in override.replace("\\", "") and "model.frozen=" not in message
    assert _train(folder, architecture, "exclude", *options, "model.frozen=[]", override) == ""


def test_a_trained_model_names_the_colour_of_an_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture = "LlavaForConditionalGeneration"
    steps = ("trainer.max_steps=150", "trainer.log_every=50", "+generation.max_new_tokens=12")
    assert kept_ranks(_train, 1, folder, architecture, "learnt", *steps) == [""]
    measured = next(line for line in lines(folder / "learnt") if "eval_accuracy" in line)
    assert measured["eval_accuracy"] > 0.9 and measured["eval_exact_match"] > 0.7
    exported = str(folder / "exported")
    assert main(["export", str(folder / "learnt"), exported]) == 0
    asked = '--chat --image FILE --prompt "..."'
    assert f"trireme generate {exported} {asked}" in capsys.readouterr().err
    assert f"trireme generate {folder}/learnt {asked}" in (folder / "learnt" / "log.txt").read_text()
    for number, colour in enumerate(COLOURS):
        options = ["--prompt", "Colour?", "--image", str(folder / f"{number}.png"), "--temperature", "0"]
        assert main(["generate", exported, "--chat", *options]) == 0
        assert capsys.readouterr().out.strip() == colour
    parts = [{"type": "image", "path": str(folder / "2.png")}, {"type": "text", "text": "Colour?"}]
    (folder / "asked.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    assert main(["generate", exported, "--chat", str(folder / "asked.json"), "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip() == "blue"


def test_a_resume_refuses_changed_images(folder: Path, tmp_path: Path) -> None:
    """A copy of chats with relative paths, elsewhere, is no change; another image behind a path is one."""
    lines_ = (folder / "chats.jsonl").read_text().replace(f"{folder}/", "")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chats.jsonl").write_text(lines_)
        for image in folder.glob("*.png"):
            shutil.copy2(image, tmp_path / name)

    def run(place: str, run: str, *more: str) -> str:
        paths = (f"data.source.paths=[{tmp_path}/{place}/chats.jsonl]", f"data.cache_dir={tmp_path}/cache")
        return _train(folder, "LlavaForConditionalGeneration", f"{tmp_path}/{run}", *paths, *more)

    assert run("here", "run", "trainer.stop_at=1") == run("there", "run", "trainer.stop_at=2") == ""
    for image in (tmp_path / "there").glob("?.png"):
        shutil.copy(folder / "40.png", image)
    said = run("there", "run", "trainer.stop_at=3")
    assert "data.source" in said and "files of images or audio clips that have changed since step_00000002" in said
    assert run("here", "other", "trainer.stop_at=1") == run("there", "another", "trainer.stop_at=1") == ""
    losses = [lines(tmp_path / name)[0] for name in ("run", "other", "another")]
    assert losses[0]["loss"] == losses[1]["loss"] != losses[2]["loss"]


def test_images_beyond_the_block_are_refused(folder: Path) -> None:
    words = "its images end at token 10, beyond data.block_size=8"
    assert words in _train(folder, "LlavaForConditionalGeneration", "refused", "data.block_size=8")
