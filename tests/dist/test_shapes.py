"""Models for texts, pairs of texts, images, captions and speech have the same losses under DDP, FSDP and ZeRO plans and
resume exactly; those for images and speech are exported.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exported import aligned
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import recipe_of
from helpers.several_runs import Job, train_all, train_all_on_ranks
from helpers.zero import load_deepspeed
from parity.shapes import SHAPES
from trireme.launch.cli import main
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.checkpoint.export.export_folder import export

TOLERANCE = 1e-4
IMAGES, SPEECH = SHAPES["image_classification"].file, SHAPES["ctc"].file
RESNET = ["model=resnet_tiny", "data.image_size=16"]
needs_espeak = pytest.mark.skipif(SHAPES["ctc"].missing, reason="espeak-ng is not installed")
KINDS = {
    **{name: (name, []) for name in SHAPES if not SHAPES[name].missing},
    "batch_norm": ("image_classification", RESNET),
}
STEPS, SAVED = 6, 3


def _train(file: Path, run_dir: Path, overrides: list[str]) -> None:
    train_all([(file, run_dir, overrides)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Runs on one process, by kind; some samples lack labels, and collators draw at random."""
    folder, jobs = tmp_path_factory.mktemp("alone"), {}
    for kind, (name, overrides) in KINDS.items():
        shape = SHAPES[name]
        overrides = [*overrides, *shape.overrides, *shape.data(folder), *shape.uneven_labels]
        jobs[kind] = (shape.file, folder / kind, overrides)
    train_all(list(jobs.values()))
    return jobs


def _jobs(alone: dict[str, Job], folder: Path, *overrides: str) -> list[Job]:
    return [(file, folder / kind, [*own, *overrides]) for kind, (file, _, own) in alone.items()]


@pytest.mark.parametrize(
    ("plan", "micro", "ranks"),
    [
        ("ddp", 4, 2),
        # `make parity` has these as well; runs that move to fsdp_full_shard are below.
        pytest.param("fsdp_full_shard", 1, 2, marks=pytest.mark.long),
        pytest.param("zero3", 2, 2, marks=pytest.mark.long),
        pytest.param("single", 2, 1, marks=pytest.mark.long),
    ],
    ids=["ddp", "fsdp_full_shard", "zero3", "accumulation"],
)
def test_a_plan_gives_the_trajectory_of_one_process(
    tmp_path: Path, alone: dict[str, Job], plan: str, micro: int, ranks: int
) -> None:
    if plan == "zero3":
        load_deepspeed()
    train_all_on_ranks(ranks, _jobs(alone, tmp_path, f"plan={plan}", f"trainer.micro_batch_size={micro}"))
    for kind, (_, run_dir, _) in alone.items():
        one, many = training(run_dir), training(tmp_path / kind)
        assert len(one) == STEPS and one[0]["loss"] != one[-1]["loss"], kind
        assert worst_difference(one, many) < TOLERANCE, kind
        if kind != "contrastive":  # its candidates come from a micro-batch, so they depend on its size
            evaluated = [next(line for line in lines(run) if "eval_loss" in line) for run in (run_dir, tmp_path / kind)]
            assert evaluated[0] == pytest.approx(evaluated[1], rel=TOLERANCE), kind


@pytest.mark.slow
def test_a_resume_in_the_middle_of_a_pass_is_exact(tmp_path: Path, alone: dict[str, Job]) -> None:
    rates = ("images_per_second", "frames_per_second", "samples_per_second", "step_seconds", "memory_mib", "mfu")
    jobs = _jobs(alone, tmp_path, "checkpoint.at_end=true")
    train_all([(file, run_dir, [*overrides, f"trainer.stop_at={SAVED}"]) for file, run_dir, overrides in jobs])
    train_all(jobs)
    for kind, (_, run_dir, _) in alone.items():
        whole, parts = (
            [{name: value for name, value in line.items() if name not in rates} for line in lines(folder)]
            for folder in (run_dir, tmp_path / kind)
        )
        assert [line for line in parts if "loss" in line] == [line for line in whole if "loss" in line], kind
        assert parts[-1] == whole[-1], kind


@pytest.mark.slow
def test_a_resume_on_another_plan_draws_the_same(tmp_path: Path, alone: dict[str, Job]) -> None:
    jobs = _jobs(alone, tmp_path, "checkpoint.at_end=true", "trainer.micro_batch_size=4")
    train_all([(file, run_dir, [*overrides, f"trainer.stop_at={SAVED}"]) for file, run_dir, overrides in jobs])
    further = [(file, run_dir, [*overrides, "plan=fsdp_full_shard"]) for file, run_dir, overrides in jobs]
    train_all_on_ranks(2, further)
    for kind, (_, run_dir, _) in alone.items():
        assert worst_difference(training(run_dir), training(tmp_path / kind)) < TOLERANCE, kind


@needs_espeak
@pytest.mark.parametrize("plan", ["ddp", "zero2", "zero3", "fsdp_full_shard"])
def test_floating_point_inputs_have_the_type_of_the_plan(tmp_path: Path, plan: str) -> None:
    kept_ranks(_train, 2, SPEECH, tmp_path, [f"plan={plan}", "plan.precision=bf16", "trainer.max_steps=2"])
    assert all(line["loss"] > 0 for line in training(tmp_path)) and len(training(tmp_path)) == 2


@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_image_models_are_exported_with_their_processor(tmp_path: Path, model: str) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    overrides = [*(RESNET if model == "resnet" else []), "trainer.max_steps=1", "checkpoint.at_end=true"]
    recipe = recipe_of(IMAGES, tmp_path / "run", *overrides)
    train(recipe)
    live = build(recipe, build_mesh(recipe.plan), resume="auto")
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    loaded, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    image = Image.linear_gradient("L").resize((12, 10))
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    assert torch.equal(pixels["pixel_values"], live.corpus.processor(image, return_tensors="pt")["pixel_values"])
    with torch.no_grad():
        ours = live.strategy.module.eval()(**pixels).logits
        assert torch.equal(aligned(loaded)(**pixels).logits, ours)
    assert loaded.config.id2label == {number: str(number) for number in range(10)}


@needs_espeak
def test_speech_is_exported_with_its_processor(tmp_path: Path) -> None:
    from transformers import AutoModelForCTC, AutoProcessor

    recipe = recipe_of(SPEECH, tmp_path / "run", "trainer.max_steps=1", "checkpoint.at_end=true")
    train(recipe)
    live = build(recipe, build_mesh(recipe.plan), resume="auto")
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    loaded, report = AutoModelForCTC.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = AutoProcessor.from_pretrained(folder)
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(0)).numpy()
    inputs = processor(samples, sampling_rate=8000, return_tensors="pt")
    with torch.no_grad():
        ours = live.strategy.module.eval()(**inputs).logits
        assert torch.equal(aligned(loaded)(**inputs).logits, ours)
    text = processor.tokenizer("three seven").input_ids
    assert processor.decode(text, group_tokens=False) == "three seven"


@pytest.mark.parametrize(
    ("file", "architecture"),
    [(IMAGES, "ViTForImageClassification"), pytest.param(SPEECH, "Wav2Vec2ForCTC", marks=needs_espeak)],
    ids=["images", "speech"],
)
def test_exported_weights_are_trained_further(
    tmp_path: Path, file: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(file, tmp_path / "run", ["checkpoint.at_end=true"])
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert f"load it: {architecture}.from_pretrained" in capsys.readouterr().err
    weights = [f"model.weights={tmp_path / 'out'}", "data.sampling_rate=8000" if file == SPEECH else "seed=0"]
    assert main(["check", str(file), *weights]) == 0, capsys.readouterr().err
    _train(file, tmp_path / "further", [*weights, "optimizer.lr=1e-9"])
    evaluated = [next(line for line in lines(tmp_path / run) if "eval_loss" in line) for run in ("run", "further")]
    assert evaluated[1]["eval_loss"] == pytest.approx(evaluated[0]["eval_loss"], rel=1e-4)


def test_every_generator_is_seeded_at_each_step(tmp_path: Path) -> None:
    """Random numbers that a model draws from numpy or Python are the same after a resume."""
    recipe = recipe_of(IMAGES, tmp_path, "trainer.max_steps=2")
    trainer = build(recipe, build_mesh(recipe.plan))

    def drawn() -> list[float]:
        trainer._begin_step()
        return [float(torch.rand(1)), float(np.random.rand()), random.random()]

    first = drawn()
    np.random.rand(3), random.random()
    assert drawn() == first
    trainer.state.step += 1
    assert not set(drawn()) & set(first)
