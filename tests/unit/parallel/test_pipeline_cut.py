"""Tests of pipeline parallelism in one process: cutting decoders into balanced stages, refused settings, idle time of
schedules, evaluation, and padding of micro-batches.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.benchmarks import load
from helpers.decoders import DECODERS, EAGER_ONLY
from helpers.micro_batches import of_tokens
from transformers import PreTrainedModel
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.family import families
from trireme.models.model_config import ModelConfig, hf_config
from trireme.parallel.apply import materialise
from trireme.parallel.pipeline.balance import balance, balanced_split, block_costs
from trireme.parallel.pipeline.check_pipeline import can_run, check_pipeline
from trireme.parallel.pipeline.cut import cut_of, cut_stage, tied_head
from trireme.parallel.pipeline.equal_shapes import concatenated, pad_alike
from trireme.parallel.pipeline.forward_only import Turns
from trireme.parallel.pipeline.pipeline_stage import HiddenStates, Stage
from trireme.parallel.pipeline.schedule import SCHEDULES, stages_of
from trireme.parallel.plan import Degrees, PipelineOptions, Plan

idle_fraction = load("pipeline_idle").idle_fraction
SPLIT = [1, 2, 1]
PLAN = Plan()


def _model(family: str, **changes: object) -> tuple[PreTrainedModel, ModelConfig]:
    attention = "eager" if family in EAGER_ONLY else "sdpa"
    config = ModelConfig(family, {**DECODERS[family], **changes}, attention=attention)
    return build_on_meta(config, "causal_lm", Vocabulary(96)), config


def _parts(model: PreTrainedModel, config: ModelConfig, split: list[int]) -> list[Stage]:
    """All stages of ``model`` with the weights of seed 0."""
    parts = []
    tied, cut = tied_head(model, config.spec), cut_of(config.spec)
    hidden = HiddenStates(model.config.hidden_size, torch.float32, config.spec.latents(model.config))
    for stage in range(len(split)):
        part, last = cut_stage(model, config.spec, stage, len(split), split), stage == len(split) - 1
        sources = {f"{cut.head}.weight": f"{cut.embedding}.weight"} if tied and last else {}
        materialise(part, torch.device("cpu"), weight_source(config, model, 0), sources)
        parts.append(Stage(part, stage == 0, last, hidden, PLAN).train(stage > 0 and not last))
    return parts


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", DECODERS)
def test_stages_in_a_row_are_the_model(family: str, masked: bool) -> None:
    """Middle stages are in training mode: dropout of embeddings must not be applied on them again."""
    model, config = _model(family)
    stages = _parts(model, config, SPLIT)
    materialise(model, torch.device("cpu"), weight_source(config, _model(family)[0], 0))
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    inputs = {"attention_mask": (torch.arange(12) < torch.tensor([[12], [7]])).long()} if masked else {}
    states = ids
    with torch.no_grad():
        for stage in stages:
            states = stage(states, **inputs)
        expected = model.eval()(ids, **inputs, use_cache=False).logits
    kept = inputs["attention_mask"].bool()[:, -states.shape[1] :] if masked else ...
    torch.testing.assert_close(states[kept], expected[kept], rtol=1e-5, atol=1e-6)
    assert expected.std() > 0


@pytest.mark.parametrize("family", DECODERS)
def test_every_parameter_is_on_one_stage_under_its_name(family: str) -> None:
    model, config = _model(family)
    whole = {name: parameter.shape for name, parameter in model.named_parameters()}
    found: dict[str, torch.Size] = {}
    for stage in range(3):
        part = cut_stage(model, config.spec, stage, 3, SPLIT)
        for name, parameter in part.named_parameters():
            assert name not in found
            found[name] = parameter.shape
    copy = found.pop(f"{cut_of(config.spec).head}.weight") if tied_head(model, config.spec) else None
    assert found == whole
    assert copy in (None, whole[f"{cut_of(config.spec).embedding}.weight"])


def test_the_whole_model_stays_as_it_was() -> None:
    model, config = _model("gpt2")
    before = [name for name, _ in model.named_parameters()]
    cut_stage(model, config.spec, 1, 2, [2, 2])
    assert [name for name, _ in model.named_parameters()] == before
    assert tied_head(model, config.spec)


def test_types_of_blocks_are_looked_up_within_the_stage() -> None:
    """Stock code takes ``config.layer_types[i]`` for block i of its list, so a stage needs its own part of them."""
    model, config = _model("llama")
    model.config.__dict__["layer_types"] = ["a", "b", "c", "d"]
    assert cut_stage(model, config.spec, 1, 3, SPLIT).config.layer_types == ["b", "c"]
    assert model.config.layer_types == ["a", "b", "c", "d"]


def test_balance_is_the_best_of_all_cuts() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        count = int(torch.randint(2, 9, (), generator=generator))
        stages = int(torch.randint(1, count + 1, (), generator=generator))
        costs = torch.randint(1, 20, (count,), generator=generator).tolist()
        sums = []
        for cuts in itertools.combinations(range(1, count), stages - 1):
            ends = [0, *cuts, count]
            sums.append([sum(costs[a:b]) for a, b in itertools.pairwise(ends)])
        best = min((max(run), sum(cost**2 for cost in run)) for run in sums)
        sizes = balance(costs, stages)
        ends = [0, *itertools.accumulate(sizes)]
        run = [sum(costs[a:b]) for a, b in itertools.pairwise(ends)]
        assert (max(run), sum(cost**2 for cost in run)) == best
        assert len(sizes) == stages and min(sizes) > 0


def test_the_head_counts_and_the_embedding_does_not() -> None:
    model, config = _model("llama", vocab_size=4096, num_hidden_layers=8)
    blocks, head = block_costs(model, config.spec)
    assert head == 4096 * 32 and len(set(blocks)) == 1
    split = balanced_split(model, config.spec, 2)
    assert split[0] > split[1] and sum(split) == 8
    assert balanced_split(model, config.spec, 2, [4, 4]) == [4, 4]


def test_large_models_are_balanced_quickly() -> None:
    assert sum(balance([7] * 120 + [19], 32)) == 121


def _problems(micro_batches: int, layers: int = 4, ranks: int = 2, **options: object) -> list[str]:
    plan = Plan(pipeline=ranks, pipelining=PipelineOptions(**options))  # type: ignore[arg-type]
    config = hf_config(ModelConfig("llama", {**DECODERS["llama"], "num_hidden_layers": layers}))
    found = check_pipeline(plan, Degrees(pipeline=ranks), families()["llama"], config, micro_batches)
    return [str(problem) for problem in found]


def test_impossible_pipelines_are_refused() -> None:
    assert _problems(4) == []
    (few,) = _problems(1)
    assert "trainer.micro_batch_size" in few and "1 micro-batch," in few and "by 2" in few
    (many,) = _problems(8, layers=2, ranks=4)
    assert "plan.pipeline = 4" in many and "2 blocks" in many
    (loops,) = _problems(4, layers=3, schedule="interleaved_1f1b")
    assert "4 stages (2 ranks with 2 each)" in loops and "1f1b" in loops
    length, total = _problems(4, split=[1, 1, 1])
    assert "names 3 stages" in length and "adds" not in length and "add up to 4" in total
    assert _problems(4, split=[1, 3]) == []
    (odd,) = _problems(5, schedule="interleaved_1f1b")
    assert "a multiple of 2" in odd
    (v,) = _problems(3, schedule="dualpipev")
    assert "at least 4" in v


def test_split_backwards_need_plain_blocks() -> None:
    config = hf_config(ModelConfig("llama", DECODERS["llama"]))

    def fields(schedule: str) -> list[str]:
        options = PipelineOptions(schedule=schedule)  # type: ignore[arg-type]
        plan = Plan(pipeline=2, compile=True, recompute="full", pipelining=options)
        return [p.field for p in check_pipeline(plan, Degrees(pipeline=2), families()["llama"], config, 4)]

    assert fields("zbv_zero_bubble") == ["plan.compile", "plan.recompute"]
    assert fields("interleaved_1f1b") == []


def test_the_check_needs_no_torch() -> None:
    code = "import sys, trireme.parallel.pipeline.check_pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path("/")).returncode == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_check_agrees_with_torch(schedule: str) -> None:
    """torch can lay out every accepted schedule, without a deadlock, and none of the refused ones."""
    for ranks, micro_batches in itertools.product((2, 3), range(1, 9)):
        if can_run(schedule, ranks, micro_batches):
            assert 0 <= idle_fraction(schedule, ranks, micro_batches) < 1
        else:
            with pytest.raises(ValueError):
                idle_fraction(schedule, ranks, micro_batches)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 2), (2, 8), (4, 4), (4, 16)])
@pytest.mark.parametrize("backward", [1, 2])
def test_idle_slots_of_1f1b(ranks: int, micro_batches: int, backward: int) -> None:
    cost = {"F": 1, "B": backward}
    expected = (ranks - 1) / (micro_batches + ranks - 1)
    assert idle_fraction("1f1b", ranks, micro_batches, cost=cost) == pytest.approx(expected)
    assert idle_fraction("gpipe", ranks, micro_batches, cost=cost) == pytest.approx(expected)


def test_loops_and_split_backwards_leave_less_idle() -> None:
    idle = {schedule: idle_fraction(schedule, 4, 8) for schedule in SCHEDULES}
    assert idle["interleaved_1f1b"] == pytest.approx(3 / (2 * 8 + 3))  # (p - 1) / (v m + p - 1), arXiv:2104.04473
    assert idle["interleaved_zero_bubble"] < idle["interleaved_1f1b"] < idle["1f1b"]
    assert idle["zbv_zero_bubble"] < idle["interleaved_1f1b"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_turns_bring_every_batch_through_all_stages(schedule: str, ranks: int) -> None:
    options = PipelineOptions(schedule=schedule)  # type: ignore[arg-type]
    rank_of = {stage: rank for rank in range(ranks) for stage in stages_of(rank, ranks, options)}
    turns, count = Turns(rank_of), 0
    while turns.done[-1] < 9:
        stages = turns.next(min(turns.done[0] + 1, 9))
        assert stages and len({rank_of[stage] for stage in stages}) == len(stages)
        for stage in stages:
            turns.done[stage] += 1
        count += 1
    assert turns.done == [9] * len(rank_of) and turns.next(9) == []
    # Ranks work at the same time, so there are at most one fill and one drain more turns than the least possible.
    assert count <= 9 * options.per_rank + 2 * len(rank_of)


def test_micro_batches_become_uniform() -> None:
    short = of_tokens(torch.ones(2, 3, dtype=torch.int64))
    long = of_tokens(torch.full((2, 5), 2), attention_mask=torch.full((2, 5), 2))
    first, second = pad_alike([short, long], pad_token=7)
    assert first.inputs["input_ids"].tolist()[0] == [1, 1, 1, 7, 7]
    assert first.targets["labels"].tolist()[0] == [1, 1, -100, -100, -100]
    assert first.inputs["attention_mask"].tolist()[0] == [1, 1, 1, 0, 0]
    assert first.length == short.length and first.samples is short.samples
    assert second is long
    assert concatenated([first, second])["input_ids"].shape == (4, 5)
    assert concatenated([first, second]).keys() == {"input_ids", "attention_mask"}
    packed = of_tokens(torch.ones(2, 3, dtype=torch.int64), position_ids=torch.tensor([[5, 0, 1]] * 2))
    packed = dataclasses.replace(packed, documents=torch.tensor([[4, 5, 5]] * 2))
    other = torch.zeros(2, 5, dtype=torch.int64)
    (padded, _) = pad_alike([packed, of_tokens(other, position_ids=other)])
    assert padded.inputs["position_ids"].tolist()[0] == [5, 0, 1, 0, 1] and "attention_mask" not in padded.inputs
    assert padded.documents is not None and padded.documents.tolist()[0] == [4, 5, 5, -1, -1]
    moved = padded.to(torch.device("meta"))
    assert moved.documents is not None and moved.documents.is_meta and short.to(torch.device("meta")).documents is None


def test_micro_batches_that_cannot_become_uniform() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="samples"):
        pad_alike([of_tokens(ids), of_tokens(ids[:1])])
    with pytest.raises(ValueError, match="different inputs"):
        pad_alike([of_tokens(ids), of_tokens(ids, position_ids=ids)])
    with pytest.raises(ValueError, match="cannot be padded"):
        pad_alike([of_tokens(ids, x=torch.ones(4)), of_tokens(torch.ones(2, 4, dtype=torch.int64), x=torch.ones(4))])
