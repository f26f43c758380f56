"""Estimate the memory of a rank under a parallelism plan by formulas, without running the model or needing a GPU.

P is the number of parameters that pipeline and tensor parallelism leave on a rank, N the ranks they are sharded over,
c the bytes of the compute type (2 or 4), k the bytes of optimizer state per parameter. Weights and optimizer state
are fp32.

=====================  ==========  ==========  ==========  ===========================================================
bytes of               parameters  gradients   optimizer   gathered
=====================  ==========  ==========  ==========  ===========================================================
single, ddp            4P          4P          kP          2P under autocast: weights in the compute type
FSDP2 full shard       4P/N        4P/N        kP/N        c x (2 blocks + head), and the gradients of one block
 keeping parameters    4P/N        4P/N        kP/N        cP, and the same
 reducing once         4P/N        4P/N        kP/N        cP + 4P
ZeRO-0                 cP          cP          kP          (k + 4)P of optimizer state where c is 2
ZeRO-1                 cP          4P          (k + 4)P/N  two buckets
ZeRO-2                 cP          4P/N        (k + 4)P/N  two buckets
ZeRO-3                 cP/N        4P/N        (k + 4)P/N  c x (2 blocks + head)
=====================  ==========  ==========  ==========  ===========================================================

The states are those of ZeRO (https://arxiv.org/abs/1910.02054, section 3.1), with gradients in fp32. Offloaded state
counts as memory of the host. ``activation_bytes`` has the formulas for activations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil
from typing import Any

from transformers import PreTrainedModel

from ..models.check_loss import PIECE, in_pieces
from ..models.family import ModelFamily
from ..models.find_blocks import blocks_of, embeddings_of, heads_of
from ..models.hidden_size import hidden_size
from ..models.low_rank import adapter_in, sizes_of
from .plan import Degrees, Plan
from .zero.options import LEAST_BUCKET

MASTER = 4
"""Bytes of a number in fp32."""
WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
OPTIMIZER_BYTES = {
    "adamw": 8, "adam": 8, "radam": 8, "nadam": 8, "adamax": 8, "adadelta": 8, "adamw_8bit": 2,
    "lion": 4, "rmsprop": 4, "adagrad": 4, "adafactor": 0,
}  # fmt: skip
"""Bytes of optimizer state per parameter. Adafactor's row and column statistics are too small to count."""
WRITTEN_OUT = ("gelu_new", "gelu_fast", "quick_gelu")
"""Activation functions that transformers computes in several operations."""
INNER = ("intermediate_size", "n_inner", "ffn_dim")
"""Names of the inner size of a feed-forward part in transformers' configurations."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model that the formulas use. Tied parameters are counted once."""

    embedding: int
    """Parameters of the token embedding."""
    blocks: int
    """Parameters of all blocks."""
    head: int
    """Parameters of the head; if it is tied, these are the parameters of the embedding."""
    rest: int
    """All other parameters: final norm, position embeddings ..."""
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    inner: int
    """Width inside the feed-forward part."""
    vocabulary: int
    gated: bool = False
    """Whether the feed-forward part multiplies two projections (SwiGLU, GeGLU)."""
    tied: bool = False
    dropout: bool = False
    """Whether the model has any dropout."""
    attention_dropout: bool = False
    """Whether attention has a dropout."""
    adapter_inputs: float = 0.0
    """Inputs per token of a block's adapters that have a dropout of their own, which keeps a second copy of them."""
    written_out: bool = False
    """Whether the activation function consists of several operations, each of which keeps its result for the backward
    pass."""
    trained: float = 1.0
    """Share of the parameters that are trained."""

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.rest + (0 if self.tied else self.head)

    @property
    def block(self) -> float:
        """Parameters of one block, on average."""
        return self.blocks / self.layers


@dataclass(frozen=True)
class Step:
    """Sizes of one optimizer step on one data rank."""

    micro_batch: int
    """Samples in a micro-batch."""
    length: int
    """Tokens in a sample."""
    micro_batches: int
    """Micro-batches in a step."""
    state_bytes: int = 8
    """Bytes of optimizer state per trained parameter, averaged weights included."""
    eager: bool = False
    """Whether attention keeps its scores (length x length per head); see ``keeps_scores``."""
    loss: str = "auto"
    """``model.loss``"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory, by use, on the rank that needs most."""

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    """Temporary bytes: gathered parameters, copies in the compute type, gradients before their reduction."""
    activations: float
    logits: float
    host: float = 0.0
    """Bytes that offload keeps in CPU memory."""

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(getattr(self, part.name) for part in fields(self) if part.name != "host")


@dataclass(frozen=True)
class _RankParameters:
    """Numbers of parameters on one rank, after pipeline and tensor parallelism."""

    parameters: float
    block: float
    """Parameters of one block."""
    ends: float
    """Parameters of the embedding or the head, whichever is larger on this rank; 0 on middle stages."""


def model_sizes(model: PreTrainedModel, family: ModelFamily) -> ModelSizes:
    """Count the sizes of a model on the meta device, which takes no memory."""
    config = model.config.get_text_config()
    embedding = {id(p): p for _, part in embeddings_of(model, family) for p in part.parameters()}
    head = {id(p): p for _, part in heads_of(model, family) for p in part.parameters()}
    stacked = blocks_of(model, family)
    blocks = {id(p): p for block in stacked for p in block.parameters()}
    everything = {id(p): p for p in model.parameters()}
    parameters = list(everything.values())
    total = _count(everything)
    hidden, heads = hidden_size(config), getattr(config, "num_attention_heads", None) or 1
    heads = heads if isinstance(heads, int) else max(heads)
    return ModelSizes(
        embedding=_count(embedding),
        blocks=_count(blocks),
        head=_count(head),
        rest=total - _count({**embedding, **blocks, **head}),
        layers=max(len(stacked), 1),
        hidden=hidden,
        heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        inner=next((size for name in INNER if (size := getattr(config, name, None))), 4 * hidden),
        vocabulary=getattr(config, "vocab_size", None) or getattr(config, "num_labels", 1),
        gated=any("gate_proj" in name for block in stacked for name, _ in block.named_modules()),
        tied=bool(embedding) and embedding.keys() <= head.keys(),
        dropout=any(_dropouts(config).values()),
        attention_dropout=any(value for name, value in _dropouts(config).items() if "att" in name),
        adapter_inputs=sum(map(_dropped_inputs, stacked)) / max(len(stacked), 1),
        written_out=any(getattr(config, name, None) in WRITTEN_OUT for name in ("hidden_act", "activation_function")),
        trained=sum(p.numel() for p in parameters if p.requires_grad) / total,
    )


def _dropouts(config: Any) -> dict[str, float]:
    return {name: value for name, value in vars(config).items() if "drop" in name and isinstance(value, float)}


def _dropped_inputs(block: Any) -> int:
    """Inputs of the adapters in a block that have a dropout."""
    adapters = ((layer, adapter_in(layer)) for layer in block.modules())
    return sum(sizes_of(layer)[0] for layer, adapter in adapters if adapter is not None and adapter.dropout > 0)


def keeps_scores(kernel: str | None, sizes: ModelSizes, accelerator: bool) -> bool:
    """Whether attention keeps its scores for the backward pass: the eager kernel does, and torch's own on a CPU with
    attention dropout, for which the CPU has no fused kernel."""
    return kernel == "eager" or (kernel in ("sdpa", None) and sizes.attention_dropout and not accelerator)


def _count(parameters: dict[int, Any]) -> int:
    """Bytes of the parameters, in fp32 numbers: quantised layers count less than the weights that they stand for."""
    return round(sum(parameter.numel() * parameter.element_size() for parameter in parameters.values()) / MASTER)


def state_bytes(optimizer: dict[str, Any], averaged: bool = False) -> int:
    """Bytes of optimizer state per parameter, by the optimizer's name; an unknown one counts 8, as AdamW does.

    Args:
        optimizer: ``_target_`` and its arguments.
        averaged: whether the run also keeps averaged weights.
    """
    name = str(optimizer.get("_target_", "")).rpartition(".")[2].lower()
    state = (4 if optimizer.get("momentum") else 0) if name == "sgd" else OPTIMIZER_BYTES.get(name, 8)
    return state + MASTER * averaged


def estimate(plan: Plan, degrees: Degrees, sizes: ModelSizes, step: Step) -> MemoryEstimate:
    """Bytes of the rank that needs most.

    Under a pipeline it has the first stage, which keeps most micro-batches in flight, or the last, which keeps logits.
    """
    ends = [(True, True)]
    if degrees.pipeline > 1 and plan.pipelining.schedule not in plan.pipelining.V_SHAPED:
        ends = [(True, False), (False, True)]
    ranks = [_rank(plan, degrees, sizes, step, first, last) for first, last in ends]
    return max(ranks, key=lambda rank: rank.total)


def activation_bytes(plan: Plan, degrees: Degrees, sizes: ModelSizes, step: Step) -> tuple[float, float]:
    """Bytes of a block's activations for one micro-batch: (kept until the backward pass, recomputed during it).

    Korthikanti et al. (https://arxiv.org/abs/2205.05198, table 2) count s b h (34 + 5 a s / h) bytes in half
    precision for a block of GPT: 2 norms, attention with its input, query, key, value and output, and a feed-forward
    part of inner size 4h with its input; 2 masks of dropout. The formula here adds grouped heads, any inner size,
    gates, fp32, and the inputs that adapters drop again. Activation functions of several operations keep 3 more
    results. Scores (5 a s / h) are kept where ``keeps_scores`` says so, with their mask and a second copy under
    dropout. Masks count one byte for each element, as torch's do; dropout by keys (``models/noise.py``) keeps none
    unless blocks are compiled. Tensor ranks divide all but norms, inputs and masks (10 + 24 / t); with sequence
    parallel they divide all (34 / t).

    ``recompute: full`` keeps the block's input; ``selective`` also keeps the results of matrix products and attention.
    """
    width, tokens = WIDTH[plan.precision], step.micro_batch * step.length
    key_value = 2 * sizes.key_value_heads / sizes.heads
    inner = sizes.inner / sizes.hidden
    divided = 2 + key_value + ((4 if sizes.gated else 2) + 3 * sizes.written_out) * inner
    whole = 4.0
    masks = 2.0 if sizes.dropout else 0.0
    share = degrees.tensor if plan.sequence_parallel else 1
    dropped = (width + 1) * sizes.adapter_inputs / sizes.hidden
    kept = (divided * width) / degrees.tensor + (whole * width + masks + dropped) / share
    scores = 0.0
    if step.eager:
        each = width + (1 + width if sizes.attention_dropout else 0)
        scores = each * sizes.heads * step.length / sizes.hidden / degrees.tensor
    everything = (kept + scores) * tokens * sizes.hidden
    if plan.recompute == "none":
        return everything, 0.0
    kept = width / share
    if plan.recompute == "selective":
        kept += 2 * width / share + width * (2 + key_value + (2 if sizes.gated else 1) * inner) / degrees.tensor
        kept += scores
    return min(kept * tokens * sizes.hidden, everything), everything


def in_flight(plan: Plan, degrees: Degrees, micro_batches: int, first: bool = True) -> float:
    """Number of micro-batches whose activations a rank keeps at once, for all of its blocks.

    For p ranks the schedules give: 1F1B, p on the first stage and 1 on the last; interleaved with v stages per rank,
    p (1 + (p - 1) / (p v)) (https://arxiv.org/abs/2104.04473, section 2.2; https://arxiv.org/abs/2205.05198, section
    4.2.3); V-shaped, p on every rank (https://arxiv.org/abs/2401.10241, section 6); GPipe and breadth-first, all.
    """
    ranks, options = degrees.pipeline, plan.pipelining
    if ranks == 1:
        return 1.0
    most = float(micro_batches)
    if options.schedule in ("gpipe", "looped_bfs"):
        return most
    if options.schedule == "1f1b":
        return min(float(ranks if first else 1), most)
    if options.schedule in options.V_SHAPED:
        return min(float(ranks + (options.schedule == "dualpipev")), most)
    return min(ranks * (1 + (ranks - 1) / (ranks * options.per_rank)), most)


def _rank(plan: Plan, degrees: Degrees, sizes: ModelSizes, step: Step, first: bool, last: bool) -> MemoryEstimate:
    layers = ceil(sizes.layers / degrees.pipeline)
    here = [sizes.embedding] if first else []
    if last and not (sizes.tied and first):
        here.append(sizes.head)
    elements = layers * sizes.block + sum(here) + sizes.rest
    held = _RankParameters(
        elements / degrees.tensor, sizes.block / degrees.tensor, max(here, default=0) / degrees.tensor
    )
    kept, again = activation_bytes(plan, degrees, sizes, step)
    activations = layers * kept * in_flight(plan, degrees, step.micro_batches, first) + again
    # Logits, and their log-probabilities and gradients in fp32. Logits in half precision also need a copy in fp32, and
    # gradients of their own.
    each = 12 if plan.precision == "fp32" else 14
    logits = each * step.micro_batch * step.length * sizes.vocabulary / degrees.tensor if last else 0.0
    if in_pieces(step.loss, sizes.vocabulary):
        logits = min(logits, 2.0 * PIECE)
    states = {"ddp": _copies, "fsdp": _fsdp, "deepspeed": _deepspeed}[plan.data_parallel]
    return MemoryEstimate(**states(plan, degrees, sizes, step, held), activations=activations, logits=logits)


def _copies(plan: Plan, degrees: Degrees, sizes: ModelSizes, step: Step, held: _RankParameters) -> dict[str, float]:
    bytes_, trained = MASTER * held.parameters, sizes.trained
    buckets = degrees.data > 1 and not plan.ddp.gradient_as_bucket_view
    return {
        "parameters": bytes_,
        "gradients": bytes_ * trained,
        "optimizer": step.state_bytes * held.parameters * trained,
        "gathered": _cast(plan) * held.parameters + buckets * bytes_ * trained,
    }


def _fsdp(plan: Plan, degrees: Degrees, sizes: ModelSizes, step: Step, held: _RankParameters) -> dict[str, float]:
    options, ranks = plan.fsdp, degrees.shard
    width = WIDTH[options.param_dtype or plan.precision]
    part, state = MASTER * held.parameters / ranks, step.state_bytes * held.parameters * sizes.trained / ranks
    block = min(2 * held.block + held.ends, held.parameters)
    if ranks == 1:  # parameters are whole already, and are copied only to change their type
        gathered = 0 if width == MASTER else width * (held.parameters if degrees.replicate > 1 else block)
    else:
        gathered = width * (block if options.reshard_after_forward else held.parameters)
    gradients = part * sizes.trained
    waits = degrees.pipeline > 1 or not options.reduce_every_micro_batch
    unreduced = held.parameters if waits and ranks > 1 else held.block
    gathered += MASTER * unreduced * sizes.trained if degrees.data > 1 else 0
    if not options.offload:
        return {"parameters": part, "gradients": gradients, "optimizer": state, "gathered": gathered}
    host = part + gradients + state
    return {"parameters": 0, "gradients": 0, "optimizer": 0, "gathered": gathered, "host": host}


def _deepspeed(plan: Plan, degrees: Degrees, sizes: ModelSizes, step: Step, held: _RankParameters) -> dict[str, float]:
    options, ranks, width = plan.deepspeed, degrees.data, WIDTH[plan.precision]
    assert not isinstance(options, str)
    stage, trained = options.stage, sizes.trained
    parameters = width * held.parameters / (ranks if stage == 3 else 1)
    masters = MASTER if stage > 0 or width < MASTER else 0
    state = (step.state_bytes + masters) * held.parameters * trained / (ranks if stage >= 1 else 1)
    whole = width if stage == 0 else MASTER
    gradients = whole * held.parameters * trained / (ranks if stage >= 2 else 1)
    gathered = width * min(2 * held.block + held.ends, held.parameters) if stage == 3 else 0
    bucket = options.reduce_bucket_size
    bucket = max(sizes.hidden**2, LEAST_BUCKET) if bucket == "auto" else bucket
    gathered += 2 * width * min(bucket, held.parameters)  # one bucket is filled while another is sent
    host = 0.0
    if options.offload_optimizer.device != "none":
        share = options.offload_optimizer.ratio
        host += share * state + MASTER * held.parameters * trained / ranks
        gradients = gradients if stage < 2 else 0
        state *= 1 - share
    if options.offload_param.device != "none":
        host, parameters = host + parameters, 0
    return {
        "parameters": parameters, "gradients": gradients, "optimizer": state, "gathered": gathered, "host": host
    }  # fmt: skip


def _cast(plan: Plan) -> int:
    """Bytes per parameter of the copies in the compute type that autocast keeps from forward to backward."""
    return 0 if plan.precision == "fp32" else WIDTH[plan.precision]
