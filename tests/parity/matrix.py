"""Train models under parallelism plans and in one process, in fp32, and compare losses and gradient norms of each step.

``make parity`` runs all combinations of plan, model, gradient accumulation, and label masks or dropout. It prints the
table and writes ``docs/parity.md``. ``test_matrix.py`` runs some of them. Decoders are trained under every plan. The
models of ``shapes.py`` are trained under the plans without pipeline and tensor parallelism. Adapters are trained under
one plan of each kind.

The losses and the norms of the global gradient are compared as relative differences. The first step tests the forward
and the backward pass, and the later steps also test every optimizer step before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.kept_ranks import kept_ranks
from helpers.metrics import training, worst_difference
from helpers.quantised import quantised_folder
from helpers.recipes import TINY
from helpers.several_runs import train_all, train_all_on_ranks
from helpers.zero import load_deepspeed
from parity.shapes import SHAPES
from trireme.trainer.checkpoint.export.export_folder import export

TOLERANCE = 1e-4
STEPS = 20
GLOBAL_BATCH = 16
FAMILIES = ("persimmon", "gpt_neox", "llama", "gpt2", "perceiver_ar")
MASKS = ("full", "uneven", "noise")
"""Settings of the runs of a family: labels on all tokens, labels on some tokens, and noise. Noise is NEFTune with alpha
5, and dropout 0.1 wherever the family has dropout."""
DROPOUTS = {
    "persimmon": ("hidden_dropout", "attention_dropout"),
    "gpt_neox": ("hidden_dropout", "attention_dropout"),
    "llama": ("attention_dropout",),
    "gpt2": ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    "perceiver_ar": ("hidden_dropout", "attention_dropout"),
    "mra": ("hidden_dropout_prob",),
    "transformer_xl": ("dropout", "dropatt"),
    "transformer_xl_texts": ("dropout", "dropatt"),
    "masked_lm": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "sequence_classification": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    "seq2seq_lm": ("dropout_rate",),
    "image_classification": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "ctc": ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"),
    "contrastive": tuple(
        f"{part}_config.{name}_dropout_prob" for part in ("text", "vision") for name in ("hidden", "attention_probs")
    ),
}
DROPOUTS |= {"llama_lora": DROPOUTS["llama"], "gpt2_dora": DROPOUTS["gpt2"]}
DROPOUTS |= {"llama_nf4": DROPOUTS["llama"], "gpt2_int8": DROPOUTS["gpt2"]}
DROPOUTS |= {"llama_gptq": DROPOUTS["llama"], "llama_awq": DROPOUTS["llama"]}
"""Fields of the configuration, by family."""
WITHOUT_TOKENS = ("image_classification", "ctc")
ADAPTED = {
    "llama_lora": ("model=llama_tiny", "adapter=lora_plus", "model.adapter.rank=4", "model.adapter.alpha=8.0"),
    "gpt2_dora": (
        *("model=gpt2_tiny", "adapter=dora", "model.adapter.rank=4", "model.adapter.alpha=4.0"),
        *("model.adapter.init=random", "model.adapter.modules_to_save=[wte]"),
    ),
}
"""Runs with adapters, by a name that takes the place of a family: LoRA with two learning rates, on a model with grouped
queries; DoRA on a model with fused projections, whose tied embedding is fully trained."""
QUANTISED = {
    "llama_nf4": ("model=llama_tiny", "quantization=nf4", "adapter=lora", "model.adapter.rank=4"),
    "gpt2_int8": (
        *("model=gpt2_tiny", "quantization=int8", "adapter=dora", "model.adapter.rank=4", "model.adapter.alpha=4.0"),
        *("model.adapter.init=random", "model.adapter.modules_to_save=[wte]"),
    ),
}
"""Runs with adapters on a quantised base, by a name that takes the place of a family (used in tests/dist)."""
STORED = {
    "llama_gptq": ("model=pretrained", "quantization=stored", "adapter=lora", "model.adapter.rank=4"),
    "llama_awq": ("model=pretrained", "quantization=stored", "adapter=dora", "model.adapter.rank=4"),
}
"""The same on a folder that is quantised already, by the method at the end of the name."""
ROUNDED = {"llama_qat": ("model=llama_tiny", "qat=int4", "model.qat.group_size=16")}
"""Runs with quantisation-aware training, by a name that takes the place of a family."""
ADAPTER_PLANS = (
    *("ddp", "zero1", "zero2", "zero3", "fsdp_full_shard", "fsdp_hybrid_shard", "tp", "tp_sp", "pp_1f1b"),
    *("pp_zero_bubble", "dp_pp", "dp_tp", "3d"),
)
"""Plans under which adapters are trained."""


@dataclass(frozen=True)
class Layout:
    """Ranks of a plan in the matrix, and how many of them see different samples."""

    ranks: int
    data: int
    least: int = 1
    """Fewest micro-batches of a step that the plan can run."""


LAYOUTS = {
    "single": Layout(1, 1),
    "ddp": Layout(2, 2),
    "zero0": Layout(2, 2),
    "zero1": Layout(2, 2),
    "zero2": Layout(2, 2),
    "zero3": Layout(2, 2),
    "zero1_offload": Layout(2, 2),
    "zero2_offload": Layout(2, 2),
    "zero3_offload": Layout(2, 2),
    "zero3_nvme": Layout(2, 2),
    "fsdp_full_shard": Layout(2, 2),
    "fsdp_shard_grad_op": Layout(2, 2),
    "fsdp_no_shard": Layout(2, 2),
    "fsdp_hybrid_shard": Layout(4, 4),
    "fsdp_hybrid_shard_zero2": Layout(4, 4),
    "fsdp_offload": Layout(2, 2),
    "tp": Layout(2, 1),
    "tp_sp": Layout(2, 1),
    "pp_gpipe": Layout(2, 1, 2),
    "pp_1f1b": Layout(2, 1, 2),
    "pp_interleaved": Layout(2, 1, 2),
    "pp_zero_bubble": Layout(2, 1, 2),
    "dp_pp": Layout(4, 2, 2),
    "dp_tp": Layout(4, 2),
    "3d": Layout(8, 2, 2),
    "3d_zero1": Layout(8, 2, 2),
}
"""Every plan of ``configs/plan`` but ``auto``; a test compares this table with the folder."""
SPREAD = tuple(plan for plan in LAYOUTS if plan != "single")
"""Plans of several ranks."""


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    plan: str
    family: str
    """One of ``FAMILIES``, a shape, or one of ``ADAPTED``, ``QUANTISED``, ``STORED`` or ``ROUNDED``."""
    accumulation: int
    masks: str
    overrides: tuple[str, ...] = ()
    """Further options of the plan."""

    @property
    def name(self) -> str:
        parts = [self.plan, self.family, str(self.accumulation), self.masks, *self.overrides]
        return "-".join(parts).replace("=", "_")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step; for a pipeline, accumulation 1 stands for the fewest that it can run."""
        return max(self.accumulation, LAYOUTS[self.plan].least)


def overridden(case: Case, *overrides: str) -> Case:
    """``case`` with further options."""
    return replace(case, overrides=(*case.overrides, *overrides))


def reference(folder: Path, family: str, masks: str, steps: int = STEPS) -> Path:
    """The run on one process, with each batch as one micro-batch; trained once and kept in ``folder``."""
    run_dir = folder / f"single-{family}-{masks}-{steps}"
    if not (run_dir / "done").exists():
        overrides = [*_common(folder, family, masks, steps), f"trainer.micro_batch_size={GLOBAL_BATCH}"]
        train_all([(_file(family), run_dir, overrides)])
        (run_dir / "done").touch()
    return run_dir


def difference(case: Case, folder: Path, steps: int = STEPS, start: Callable[..., list] = kept_ranks) -> float:
    """Largest relative difference of losses and gradient norms of ``case`` from one process."""
    return differences([case], folder, steps, start)[case.name]


def differences(
    cases: Sequence[Case], folder: Path, steps: int = STEPS, start: Callable[..., list] = kept_ranks
) -> dict[str, float]:
    """``difference`` of several cases of one plan, by name; one group of ranks trains them one after the other."""
    plan = cases[0].plan
    assert all((case.plan, case.overrides) == (plan, cases[0].overrides) for case in cases)
    if plan.startswith("zero"):
        load_deepspeed()
    ones = [training(reference(folder, case.family, case.masks, steps)) for case in cases]
    jobs = [(_file(case.family), folder / f"{case.name}-{steps}", _overrides(case, folder, steps)) for case in cases]
    train_all_on_ranks(LAYOUTS[plan].ranks, jobs, 600, start)
    found = {}
    for case, one, (_, run_dir, _) in zip(cases, ones, jobs, strict=True):
        many = training(run_dir)
        counts = [[line.get("tokens", line.get("samples")) for line in side] for side in (one, many)]
        assert len(many) == steps and counts[0] == counts[1], case.name
        found[case.name] = worst_difference(one, many)
    return found


def _overrides(case: Case, folder: Path, steps: int) -> list[str]:
    micro = GLOBAL_BATCH // (LAYOUTS[case.plan].data * case.micro_batches)
    overrides = [*_common(folder, case.family, case.masks, steps), f"plan={case.plan}", *case.overrides]
    overrides.append(f"trainer.micro_batch_size={micro}")
    if case.plan == "zero3_nvme":
        (folder / "nvme").mkdir(exist_ok=True)
        for part in ("offload_optimizer", "offload_param"):
            overrides.append(f"plan.deepspeed.{part}.nvme_path={folder / 'nvme'}")
    return overrides


def _common(folder: Path, family: str, masks: str, steps: int) -> list[str]:
    if family in SHAPES:
        model = [*SHAPES[family].overrides, *SHAPES[family].data(folder)]
    else:
        model = list({**ADAPTED, **QUANTISED, **STORED, **ROUNDED}.get(family, [f"model={family}_tiny"]))
    if family in STORED:
        model.append(f"model.weights={_stored_base(folder / family, family)}")
    return [
        *model,
        *_masks(family, masks),
        f"trainer.max_steps={steps}",
        f"trainer.global_batch_size={GLOBAL_BATCH}",
        "trainer.eval_at_end=false",
        "checkpoint.at_end=false",
    ]


def _stored_base(folder: Path, family: str) -> Path:
    """A small Llama in the format of GPTQ or AWQ, which is written once."""
    method = family.rpartition("_")[2]
    if not (folder / method).exists():
        train_all([(TINY, folder / "run", ["model=llama_tiny", "trainer.max_steps=2"])])
        quantised_folder(export(str(folder / "run"), str(folder / "whole")), folder / method, method)
    return folder / method


def _masks(family: str, masks: str) -> list[str]:
    if masks == "noise":
        return noise_of(family)
    if masks == "full":
        return []
    if family in SHAPES:
        return SHAPES[family].uneven_labels
    if family == "perceiver_ar":  # prefixes are drawn in all of its runs, and here some of their tokens are dropped
        return ["+collator._target_=helpers.masking.UnevenLatents", "+collator.prefix_dropout=0.3"]
    return ["+collator._target_=helpers.masking.UnevenMasks"]


def noise_of(family: str) -> list[str]:
    """Overrides for NEFTune and for every dropout of ``family``, also that of attention."""
    alpha = [] if family in WITHOUT_TOKENS else ["model.neftune_alpha=5"]
    adapter = ["model.adapter.dropout=0.1"] if family in {**ADAPTED, **QUANTISED, **STORED} else []
    fields = (f"model.config.{name}=0.1" for name in DROPOUTS[family])
    return [*alpha, "model.attention=eager", *adapter, *fields]


def _file(family: str) -> Path:
    return SHAPES[family].file if family in SHAPES else TINY
