"""Train an architecture by its name (``model.family=auto``) under several plans, compare losses, resume and export.

``make families`` trains all architectures and writes ``docs/families.md``; ``test_matrix.py`` trains one of each kind.
The heads that transformers has for an architecture decide its task, data and processor (``kinds.py``). Configurations
are tiny (``tiny_config.py``). Other architectures can be trained by name:

    python tests/families/report.py phi3 beit hubert
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import yaml
from families.kinds import kind_of, recipe
from helpers.exported import aligned
from helpers.kept_ranks import kept_ranks
from helpers.metrics import training, worst_difference
from trireme.configs.schema import read_recipe
from trireme.launch.compose import compose
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.checkpoint.layout import step_folder
from trireme.trainer.checkpoint.load.open_source import open_source
from trireme.trainer.collective import on_main
from trireme.trainer.loop import Trainer
from trireme.trainer.run_folder import open_run_folder

TOLERANCE, STEPS, SAVED = 1e-4, 6, 3
PLANS = ("ddp", "fsdp_full_shard", "tp", "zero3")
"""Plans on two ranks; tp where transformers has a tensor plan."""
TYPES = (
    # texts
    *("qwen3", "mistral", "gemma3_text", "falcon", "bloom", "stablelm", "olmo2", "mamba", "ctrl", "xglm"),
    *("gpt_bigcode", "qwen2", "gemma", "cohere", "olmo", "starcoder2", "phi3", "granite"),
    *("gpt_neox", "gpt2", "phi", "gptj", "opt", "codegen", "persimmon", "recurrent_gemma"),
    *("bert", "roberta", "deberta-v2", "electra", "fnet", "roberta-prelayernorm", "data2vec-text", "albert"),
    *("distilbert", "xlm-roberta", "camembert", "luke", "perceiver"),
    *("canine", "lilt"),
    *("t5", "bart", "pegasus", "m2m_100", "nllb-moe", "blenderbot-small", "mbart", "marian", "led"),
    # images
    *("vit", "swin", "resnet", "convnextv2", "pvt", "bit", "dinov2", "focalnet", "mobilevitv2", "cvt"),
    *("data2vec-vision", "beit", "deit", "convnext"),
    # audio
    *("wav2vec2", "data2vec-audio", "hubert", "wavlm", "whisper", "speech_to_text", "audio-spectrogram-transformer"),
    # several kinds of input
    *("clip", "siglip", "vision-text-dual-encoder", "clap", "blip", "pix2struct", "vision-encoder-decoder", "idefics"),
    *("bridgetower", "visual_bert"),
    *("upernet", "dpt", "yolos"),
)
"""Architectures that ``make families`` trains: those that the documentation names, and more of each kind."""


@dataclass
class Found:
    """Results of one architecture."""

    shape: str
    head: str
    parameters: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    """Plan -> largest relative difference of losses and gradient norms from one process."""
    resumed: bool = False
    """Whether a run that was stopped and resumed ended bit for bit like one that was not."""
    exported: bool = False
    """Whether plain transformers loads the exported weights and processors, and gives the same outputs."""
    no_tensor: str = ""
    """Why there is no tensor parallelism."""
    failure: str = ""
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        plans = {plan for plan in PLANS if plan != "tp" or not self.no_tensor}
        whole = not self.failure and self.resumed and self.exported and plans <= set(self.differences)
        return whole and all(value < TOLERANCE for value in self.differences.values())


def try_architecture(model_type: str, folder: Path, plans: Sequence[str] = PLANS) -> Found:
    """Train ``model_type`` in one process and under every plan, resume and export it."""
    kind = kind_of(model_type)
    found = Found(kind.shape, kind.task)
    file = folder / f"{model_type}.yaml"
    file.write_text("# An architecture, tried.\n" + yaml.safe_dump(recipe(model_type, STEPS, SAVED), sort_keys=False))
    one = folder / model_type
    found.parameters, found.resumed, found.exported, found.no_tensor = kept_ranks(
        _train_alone, 1, str(file), str(one), model_type, timeout=600
    )[0]
    assert len({line["loss"] for line in training(one)}) == STEPS, "no step changes the loss"
    tried = [plan for plan in plans if plan != "tp" or not found.no_tensor]
    kept_ranks(_train_under, 2, str(file), str(one), tried, timeout=600)
    for plan in tried:
        found.differences[plan] = worst_difference(training(one), training(folder / f"{model_type}-{plan}"))
    return found


def _train_alone(file: str, run_dir: str, model_type: str) -> tuple[int, bool, bool, str]:
    one = Path(run_dir)
    trainer = _run(file, one)
    again = one.with_name(f"{one.name}-again")
    _run(file, again, resume=step_folder(one / "checkpoints", SAVED))
    saved = _saved(step_folder(one / "checkpoints", STEPS))
    exported = _exports(trainer, one, model_type, saved)
    family = trainer.strategy.family
    reason = "" if family.tensor else family.no_tensor or "has a family file without one"
    return sum(map(torch.numel, saved.values())), _resumes_exactly(one, again), exported, reason


def _train_under(file: str, run_dir: str, plans: Sequence[str]) -> None:
    one = Path(run_dir)
    for plan in plans:
        _run(
            file,
            one.with_name(f"{one.name}-{plan}"),
            f"plan={plan}",
            "checkpoint.at_end=false",
            "checkpoint.every=null",
        )


def _run(file: str, run_dir: Path, *overrides: str, resume: Path | None = None) -> Trainer:
    """Train on the ranks that are running; the process group stays open for further runs."""
    import os

    composed = compose(file, [f"run.dir={run_dir}", *overrides])
    found, problems = read_recipe(composed.raw, lambda plan: int(os.environ.get("WORLD_SIZE", "1")))
    assert found is not None, [*composed.problems, *problems]
    mesh = build_mesh(found.plan)
    on_main(mesh, partial(open_run_folder, run_dir, fresh=False))
    trainer = build(found, mesh, resume=str(resume) if resume else "never")
    trainer.fit()
    for callback in trainer.callbacks.values():
        callback.close()
    return trainer


def _resumes_exactly(one: Path, again: Path) -> bool:
    """Whether lines and tensors of a resumed run are those of the run that was not stopped."""
    same = [(line["loss"], line["grad_norm"]) for line in training(one)[SAVED:]]
    first, second = (_saved(step_folder(run / "checkpoints", STEPS)) for run in (one, again))
    alike = all(torch.equal(first[name], second[name]) for name in first)
    return alike and same == [(line["loss"], line["grad_norm"]) for line in training(again)]


def _exports(trainer: Trainer, one: Path, model_type: str, saved: dict[str, torch.Tensor]) -> bool:
    """Whether plain transformers loads every trained tensor and the processors, and computes the same outputs."""
    import transformers

    out = export(str(one), str(one.with_name(f"{one.name}-out")))
    (name,) = transformers.AutoConfig.from_pretrained(out).architectures
    loaded = aligned(getattr(transformers, name).from_pretrained(out, dtype=torch.float32))
    tensors = dict(loaded.named_parameters(remove_duplicate=False)) | dict(loaded.named_buffers())
    wrong = [name for name, tensor in saved.items() if name not in tensors or not torch.equal(tensors[name], tensor)]
    assert not wrong, f"the export differs in {wrong[:3]}"
    for name in kind_of(model_type).processor:
        options = {"backend": "pil"} if name == "AutoImageProcessor" else {}
        getattr(transformers, name).from_pretrained(out, **options)
    micro = next(iter(trainer.corpus.eval_batches(4)))
    live = trainer.strategy.module.eval()
    with torch.no_grad():
        ours, theirs = live(**micro.inputs), loaded(**micro.inputs)
    names = [name for name, value in ours.items() if isinstance(value, torch.Tensor) and name in theirs]
    assert names and all(ours[name].isfinite().all() for name in names), "outputs are not finite"
    # The weights are equal to the bit; kernels may round otherwise, since the loaded model keeps a cache.
    return all(torch.allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6) for name in names)


def _saved(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint by plain name."""
    source = open_source(checkpoint)
    shapes = {name: entry for name, entry in source.shapes.items() if name.startswith("model.")}
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    source.read(tensors)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
