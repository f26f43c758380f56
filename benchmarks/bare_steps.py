"""Training steps written directly with DeepSpeed, FSDP2 or DTensor, as the baseline for ``step_time.py``.

Weights, batches, optimizer and clipping are the same as in trireme, and the loss is read every ten steps. Each function
takes a trainer, uses its recipe and process groups, and returns a function that trains on one batch. The loss is the
mean over a micro-batch, as users write it. It equals trireme's loss if every token has a label.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from transformers import PreTrainedModel
from trireme.models.build_model import weight_source
from trireme.models.loss import IGNORE, token_loss
from trireme.parallel.apply import materialise
from trireme.parallel.micro_batch import MicroBatch, StepBatch
from trireme.trainer.loop import Trainer

LOG_EVERY = 10
COLUMN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROW = ("self_attn.o_proj", "mlp.down_proj")
Step = Callable[[StepBatch], None]


class LossReader:
    """Reads the loss every ``LOG_EVERY`` steps, as the mean over the data ranks."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group, self.steps, self.losses = group, 0, []

    def __call__(self, losses: list[Tensor]) -> None:
        """Take the mean losses of this rank's micro-batches, each divided by the number of micro-batches."""
        self.steps += 1
        if self.steps % LOG_EVERY == 0:
            value, ranks = torch.stack(losses).sum(), 1
            if self.group is not None:
                dist.all_reduce(value, group=self.group)
                ranks = self.group.size()
            self.losses.append(value.item() / ranks)


def deepspeed_step(trainer: Trainer, read_loss: LossReader) -> Step:
    """A step of DeepSpeed with the JSON of the trainer's plan. DeepSpeed counts micro-batches itself."""
    import deepspeed
    from trireme.parallel.zero.library import quiet

    model = plain_model(trainer)
    config = copy.deepcopy(trainer.strategy.config)  # type: ignore[attr-defined]
    kind = deepspeed.ops.adam.DeepSpeedCPUAdam if "offload_optimizer" in config["zero_optimization"] else None
    with quiet():
        engine = deepspeed.initialize(
            model=model, optimizer=_adamw(model, kind), config=config, dist_init_required=False
        )[0]

    def step(batch: StepBatch) -> None:
        losses = []
        for micro in batch.micro_batches:
            loss = _mean_loss(engine(input_ids=micro.inputs["input_ids"]).logits, micro)
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach() / len(batch.micro_batches))
        read_loss(losses)

    return step


def fsdp_step(trainer: Trainer, read_loss: LossReader) -> Step:
    """A step of FSDP2, which wraps blocks, embedding and head as torchtitan does."""
    model = plain_model(trainer)
    mesh = trainer.mesh.axes["shard"]  # type: ignore[index]
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model.model.embed_tokens, mesh=mesh)
    fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    optimizer = _adamw(model)

    def step(batch: StepBatch) -> None:
        losses = []
        for micro in batch.micro_batches:
            loss = _mean_loss(model(input_ids=micro.inputs["input_ids"]).logits, micro) / len(batch.micro_batches)
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        read_loss(losses)

    return step


def tensor_step(trainer: Trainer, read_loss: LossReader) -> Step:
    """A step of tensor parallelism with DTensor's parallel styles, and its loss on split logits."""
    model = plain_model(trainer)
    mesh = trainer.mesh.axes["tensor"]  # type: ignore[index]
    plan: dict[str, Any] = {f"model.layers.*.{name}": ColwiseParallel() for name in COLUMN}
    plan |= {f"model.layers.*.{name}": RowwiseParallel() for name in ROW}
    plan["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate())
    plan["lm_head"] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(model, mesh, plan)
    optimizer = _adamw(model)
    split = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    whole = [parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)]

    def step(batch: StepBatch) -> None:
        losses = []
        for micro in batch.micro_batches:
            with loss_parallel():
                loss = _mean_loss(model(input_ids=micro.inputs["input_ids"]).logits, micro) / len(batch.micro_batches)
                loss.backward()
            losses.append(loss.detach())
        # clip_grad_norm_ refuses tensors and DTensors together.
        norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in (split, whole)]
        norm = torch.linalg.vector_norm(torch.stack([norms[0].full_tensor(), norms[1]]))  # type: ignore[attr-defined]
        for part in (split, whole):
            nn.utils.clip_grads_with_norm_(part, 1.0, norm)
        optimizer.step()
        optimizer.zero_grad()
        read_loss(losses)

    return step


def plain_model(trainer: Trainer) -> PreTrainedModel:
    """Build the recipe's model on the CPU, unsharded, with its initial weights."""
    model = copy.deepcopy(trainer.blueprint)
    weights = weight_source(trainer.recipe.model, trainer.blueprint, trainer.recipe.seed)
    materialise(model, torch.device("cpu"), weights)
    return model.train()


def _adamw(model: nn.Module, kind: Any = None) -> Any:
    """AdamW without weight decay of vectors (weights of norms, and biases)."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    common = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    return kind(groups, **common) if kind else torch.optim.AdamW(groups, **common, fused=True)


def _mean_loss(logits: Tensor, micro: MicroBatch) -> Tensor:
    labels = micro.targets["labels"]
    return token_loss(logits, labels) / (labels != IGNORE).sum()
