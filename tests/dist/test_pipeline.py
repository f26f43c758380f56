"""Pipeline parallelism on several ranks gives the losses, gradient norms, gradients and evaluations of one process."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.micro_batches import of_tokens, step_of
from helpers.options import witnesses
from helpers.ranks import run_ranks
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.loss import IGNORE, token_loss
from trireme.models.model_config import ModelConfig
from trireme.parallel import tensor_shards
from trireme.parallel.mesh import build_mesh
from trireme.parallel.micro_batch import MicroBatch, StepBatch
from trireme.parallel.pipeline.cut import cut_of
from trireme.parallel.pipeline.pipeline_strategy import PipelineStrategy
from trireme.parallel.pipeline.schedule import SCHEDULES
from trireme.parallel.plan import FSDPOptions, PipelineOptions, Plan
from trireme.parallel.strategy import Strategy
from trireme.parallel.torch_strategy import TorchStrategy

STEPS = 3
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
}
GPT2 = {"vocab_size": 128, "n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 64}
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
MODELS = {
    "llama": ModelConfig("llama", {**SIZES, "num_key_value_heads": 2}),
    "llama_tied": ModelConfig("llama", {**SIZES, "tie_word_embeddings": True}),
    "gpt2": ModelConfig("gpt2", {**GPT2, **NO_DROPOUT}),
    "gpt2_deep": ModelConfig("gpt2", {**GPT2, **NO_DROPOUT, "n_layer": 8}),
    "gpt2_frozen": ModelConfig(
        "gpt2", {**GPT2, **NO_DROPOUT}, frozen=["transformer.wte.*", "transformer.wpe.*", "transformer.h.[0-2].*"]
    ),
    "persimmon": ModelConfig("persimmon", SIZES),
    "gpt_neox": ModelConfig("gpt_neox", SIZES),
}
FSDP = FSDPOptions(reshard_after_forward=False, reduce_every_micro_batch=False)


def batches(step: int, data_rank: int, data_size: int, micro_batches: int, packed: bool = False) -> StepBatch:
    """One data rank's share of a step. Documents differ in length, and the length of micro-batches changes.

    Args:
        packed: two documents in each sample, told apart by their positions, in place of padding.
    """
    generator = torch.Generator().manual_seed(step)
    micros = []
    for _ in range(micro_batches):
        length = 2 * int(torch.randint(3, 6 + 2 * step, (), generator=generator))  # even, for two tensor ranks
        ids = torch.randint(1, 128, (2, length), generator=generator)
        kept = torch.arange(length) < torch.randint(3, length + 1, (2, 1), generator=generator)
        labels = ids.masked_fill(~kept, -100)
        if packed:
            positions = torch.cat([torch.arange(4), torch.arange(length - 4)]).expand(2, length)
            micros.append(of_tokens(ids, position_ids=positions))
        else:
            micros.append(of_tokens(ids * kept, labels, attention_mask=kept.long()))
    return step_of(micros[data_rank * len(micros) // data_size : (data_rank + 1) * len(micros) // data_size])


def loss(outputs: Any, micro: MicroBatch) -> Tensor:
    return token_loss(outputs.logits, micro.targets["labels"])


def sums(outputs: Any, micro: MicroBatch) -> dict[str, Tensor]:
    """Sums of several shapes: a loss, a number for each token of the vocabulary, a matrix."""
    summed, labels = loss(outputs, micro), micro.targets["labels"]
    tokens = torch.tensor(micro.inputs["input_ids"].numel())
    seen = torch.bincount(labels[labels != IGNORE], minlength=128)
    return {"loss": summed, "tokens": tokens, "seen": seen, "both": torch.stack([summed, tokens]).expand(3, 2)}


def sgd(named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """SGD with momentum: the first momentum is the gradient, and steps are proportional to it, so wrong scales show."""
    return torch.optim.SGD([{"params": [p for _, p in named], "lr": 0.1, "initial_lr": 0.1}], momentum=0.9)


def momenta(strategy: Any) -> dict[str, np.ndarray]:
    """The momentum of each parameter; after the first step this is its clipped gradient."""
    state, trained = strategy.optimizer.state, [(n, p) for n, p in strategy.named_parameters() if p.requires_grad]
    return {name: whole(state[parameter]["momentum_buffer"]) for name, parameter in trained}


class Traffic(TorchDispatchMode):
    """Counts collective calls by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def whole(tensor: Tensor) -> np.ndarray:
    return (tensor_shards.full_tensor(tensor) if isinstance(tensor, DTensor) else tensor).detach().clone().numpy()


def build(config: ModelConfig, plan: Plan) -> TorchStrategy:
    mesh = build_mesh(plan)
    model = build_on_meta(config, "causal_lm", Vocabulary(128))
    kind = PipelineStrategy if mesh.degrees.pipeline > 1 else TorchStrategy
    strategy = kind(plan, mesh, config.spec)
    strategy.place(model, weight_source(config, copy.deepcopy(model), 0))
    strategy.attach_optimizer(sgd)
    strategy.set_training(True)
    return strategy


def run(model: str, plan: Plan, micro_batches: int, packed: bool = False) -> dict[str, Any]:
    """Train some steps; returns losses, norms, first gradients, final weights, an evaluation and collective calls."""
    strategy = build(MODELS[model], plan)
    mesh, result = strategy.mesh, {"loss": [], "norm": [], "gradients": {}}
    for step in range(STEPS):
        batch = batches(step, mesh.data_rank, mesh.data_size, micro_batches, packed)
        with Traffic() if step == STEPS - 1 else nullcontext() as traffic:  # counting slows each operation
            total = strategy.forward_backward(batch, loss)
        stepped = strategy.optimizer_step(1.0, 1.0)
        result["loss"].append(strategy.global_loss(total))
        result["norm"].append(stepped.grad_norm.item())
        if step == 0:
            result["gradients"] = momenta(strategy)
        if step == 1:
            result["evaluation"] = evaluate(strategy)
    result["traffic"] = traffic.calls
    result["weights"] = {name: whole(p) for name, p in strategy.named_parameters()}
    result["copies"], result["saved"] = strategy.copies(), set(strategy.saved_tensors())
    result["wrapped"] = sum(isinstance(module, FSDPModule) for root in strategy.roots for module in root.modules())
    mesh.close()
    return result


def evaluate(strategy: Strategy) -> dict[str, Any]:
    mesh = strategy.mesh

    def own() -> Iterator[MicroBatch]:
        for number in range(3):
            yield from batches(10 + number, mesh.data_rank, mesh.data_size, 2).micro_batches

    strategy.set_training(False)
    found = strategy.evaluate(own(), sums)
    strategy.set_training(True)
    assert isinstance(found["loss"], float) and isinstance(found["tokens"], float)
    for name, shape in (("seen", (128,)), ("both", (3, 2))):
        assert found[name].shape == shape and found[name].dtype == torch.float64 and found[name].device.type == "cpu"
    return {name: value if isinstance(value, float) else value.numpy() for name, value in found.items()}


def assert_sums(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Assert that the sums have the same names, shapes and values."""
    assert found.keys() == expected.keys() == {"loss", "tokens", "seen", "both"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance), name
    assert np.array_equal(found["seen"], expected["seen"])


def pipeline(schedule: str, ranks: int = 2, **plan: Any) -> Plan:
    options = PipelineOptions(schedule=schedule, stages_per_rank=plan.pop("stages_per_rank", None))  # type: ignore[arg-type]
    return Plan(pipeline=ranks, pipelining=options, **plan)


def compare(
    model: str,
    plan: Plan,
    world_size: int,
    micro_batches: int,
    packed: bool = False,
    tolerance: float = 1e-5,
    start: Callable[..., list] = kept_ranks,
) -> list[dict[str, Any]]:
    """Assert that the plan follows one process, that no parameter is missing, and that copies are equal."""
    one = run(model, Plan(precision=plan.precision), micro_batches, packed)
    many = start(run, world_size, model, plan, micro_batches, packed)
    for rank in many:
        for key in ("loss", "norm"):
            assert rank[key] == pytest.approx(one[key], rel=tolerance), key
        assert_sums(rank["evaluation"], one["evaluation"], tolerance)
    assert len(set(one["norm"])) == STEPS
    assert set().union(*(rank["saved"] for rank in many)) == one["saved"]
    for what in ("gradients", "weights"):
        copied = [(name, rank[what][name]) for rank in many for name in rank["copies"] & rank[what].keys()]
        found = {name: value for rank in many for name, value in rank[what].items() if name not in rank["copies"]}
        assert found.keys() == one[what].keys()
        for name, expected in one[what].items():
            difference = np.linalg.norm(found[name] - expected)
            assert difference <= tolerance * np.linalg.norm(expected), (what, name, difference)
        for _, value in copied:
            embedding = cut_of(MODELS[model].spec).embedding
            assert np.array_equal(value, found[f"{embedding}.weight"])
    return many


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_two_ranks_equal_one_process(model: str, schedule: str) -> None:
    many = compare(model, pipeline(schedule), 2, 4)
    assert any(rank["copies"] for rank in many) == (model == "gpt2")


@pytest.mark.parametrize("schedule", ["1f1b", "zbv_zero_bubble"])
@pytest.mark.parametrize("model", ["persimmon", "gpt_neox", "llama_tied"])
def test_other_families(model: str, schedule: str) -> None:
    compare(model, pipeline(schedule), 2, 4)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zbv_zero_bubble"])
def test_four_ranks(schedule: str) -> None:
    compare("gpt2_deep", pipeline(schedule, 4), 4, 4)


@pytest.mark.parametrize(
    ("schedule", "degrees"),
    [
        ("gpipe", {"shard": 2}),
        ("1f1b", {"replicate": 2}),
        ("1f1b", {"shard": 2}),
        ("interleaved_1f1b", {"shard": 2}),
        ("interleaved_zero_bubble", {"shard": 2}),
        ("zbv_zero_bubble", {"replicate": 2}),
        ("zbv_zero_bubble", {"shard": 2}),
    ],
)
def test_with_data_ranks(schedule: str, degrees: dict[str, int]) -> None:
    """Gradients of data ranks are brought together once per step, not with every micro-batch."""
    many = compare("gpt2", pipeline(schedule, data_parallel="fsdp", fsdp=FSDP, **degrees), 4, 8)
    for rank in many:
        reductions = rank["traffic"]["_reduce_scatter_base_" if "shard" in degrees else "allreduce_"]
        assert 0 < reductions <= rank["wrapped"] + 1  # one more counts label tokens


@pytest.mark.parametrize(("schedule", "sequence_parallel"), [("1f1b", True), ("zbv_zero_bubble", False)])
def test_with_tensor_ranks(schedule: str, sequence_parallel: bool) -> None:
    compare("gpt2", pipeline(schedule, tensor=2, sequence_parallel=sequence_parallel), 4, 4)


@pytest.mark.parametrize(("schedule", "recompute"), [("1f1b", "full"), ("interleaved_1f1b", "selective")])
def test_with_recomputation(schedule: str, recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heeded = witnesses(monkeypatch, f"plan.recompute={recompute}")
    compare("llama", pipeline(schedule, recompute=recompute), 2, 4, start=run_ranks)
    assert all(calls.value for calls in heeded)


@pytest.mark.parametrize(
    ("schedule", "micro_batches"),
    [("gpipe", 1), ("interleaved_1f1b", 1), ("interleaved_zero_bubble", 1), ("zbv_zero_bubble", 1), ("looped_bfs", 3)],
)
def test_few_micro_batches(schedule: str, micro_batches: int) -> None:
    compare("gpt2", pipeline(schedule), 2, micro_batches)


def test_packed_documents_do_not_attend_to_each_other() -> None:
    """Positions reach every stage: without them, tokens would attend to earlier documents in the sample."""
    compare("llama", pipeline("1f1b"), 2, 4, packed=True)
    apart, together = (run("llama", Plan(), 4, packed)["loss"] for packed in (True, False))
    assert apart != pytest.approx(together, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision(precision: str) -> None:
    """Hidden states travel in the type of the residual stream, so that nothing is rounded on the way."""
    compare("llama", pipeline("1f1b", precision=precision), 2, 4, tolerance=2e-3)


def test_frozen_stage() -> None:
    """Hidden states of a stage without trainable parameters need no gradient."""
    compare("gpt2_frozen", pipeline("1f1b"), 2, 4)


def _evaluated(plan: Plan) -> dict[str, Any]:
    strategy = build(MODELS["llama"], plan)
    found = evaluate(strategy)
    nothing = strategy.evaluate([], sums)
    strategy.mesh.close()
    assert nothing == {}
    return found


@pytest.mark.parametrize(
    ("plan", "ranks"),
    [
        (Plan(data_parallel="ddp", replicate=2), 2),
        (Plan(data_parallel="fsdp", shard=2), 2),
        (pipeline("1f1b"), 2),
        (pipeline("zbv_zero_bubble"), 2),
        (pipeline("1f1b", replicate=2, data_parallel="fsdp"), 4),
        (Plan(tensor=2), 2),
    ],
    ids=["ddp", "fsdp", "1f1b", "zbv", "1f1b-replicated", "tp"],
)
def test_sums_of_any_shape_are_those_of_one_process(plan: Plan, ranks: int) -> None:
    """Ranks without the last stage get names and shapes from the rank that has it; no batches give no sums."""
    one = _evaluated(Plan())
    assert one["seen"].sum() > 100 and one["both"][:, 0] == pytest.approx([one["loss"]] * 3)
    for found in kept_ranks(_evaluated, ranks, plan):
        assert_sums(found, one)
