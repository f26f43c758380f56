"""Tensor parallelism gives the losses and gradients of a single process in fp32, for the model families with a tensor
plan, also with FSDP, in pipeline stages and in evaluations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.kept_ranks import kept_ranks
from helpers.micro_batches import labels_of, of_tokens
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import loss_parallel
from transformers import PreTrainedModel
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.family import families
from trireme.models.find_blocks import blocks_of
from trireme.models.initial_weights import initial_weights
from trireme.models.loss import token_loss
from trireme.models.model_config import ModelConfig
from trireme.parallel.micro_batch import MicroBatch
from trireme.parallel.pipeline.cut import cut_of, cut_stage
from trireme.parallel.recompute import recompute
from trireme.parallel.tensor import parallelize_tensor, sum_partial_gradients, tie
from trireme.parallel.tensor_shards import full_tensor, local_part
from trireme.trainer.tasks.causal_lm import CausalLM

FAMILIES = [name for name, family in families().items() if family.tensor is not None]
STEPS, LENGTH, PAD = 3, 16, 3
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 2e-5
Batch = list[MicroBatch]


def _config(family: str, **changes: Any) -> ModelConfig:
    preset = yaml.safe_load((Path(__file__).parents[2] / "configs" / "model" / f"{family}_tiny.yaml").read_text())
    layers = "n_layer" if "n_layer" in preset["config"] else "num_hidden_layers"
    few = {layers: 3 if family == "recurrent_gemma" else 2}  # its third block is the first with attention
    few |= {"max_latents": 8} if "max_latents" in preset["config"] else {}  # so that texts have a prefix
    config = preset["config"] | few | {"vocab_size": 128} | changes
    config = {key: float(value) if value == "1e-5" else value for key, value in config.items()}
    return ModelConfig(family, config)


def _model(config: ModelConfig) -> PreTrainedModel:
    return build_on_meta(config, "causal_lm", Vocabulary(100, pad=PAD))


def _fill(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Weights from the seed, larger than usual, so that attention and norms matter."""
    model.to_empty(device="cpu")
    tie(model)
    targets = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, full in initial_weights(_model(config), 0):
            if full.ndim == 1 and name in dict(model.named_parameters()):
                full = full + 0.1 * torch.randn(full.shape, generator=torch.Generator().manual_seed(len(name)))
            elif full.ndim == 2 and full.is_floating_point():
                full = full * 3
            target = targets.pop(name)
            (target._local_tensor if isinstance(target, DTensor) else target).copy_(
                local_part(full, target) if isinstance(target, DTensor) else full
            )
    assert not targets
    return model


def _batches(vocabulary: int, length: int = LENGTH) -> Iterator[Batch]:
    """Two micro-batches a step: padding and unequal labels, and in one step a micro-batch without any label."""
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        micros = []
        for kept in ((length, 5), (9, 0 if step == 1 else 2)):
            tokens = torch.randint(4, vocabulary, (2, length), generator=generator)
            mask = (torch.arange(length) < torch.tensor(kept).clamp(min=1).unsqueeze(1)).long()
            labels = tokens.masked_fill(mask == 0, -100)
            labels[1] = -100 if step == 1 else labels[1]
            labels = torch.full_like(labels, -100) if step == 2 and kept[0] == 9 else labels
            tokens = tokens.masked_fill(mask == 0, PAD)
            micros.append(of_tokens(tokens, labels, attention_mask=mask))
        yield micros


def _steps(model: PreTrainedModel, batches: Iterator[Batch], split: bool) -> list[tuple[float, dict[str, Tensor]]]:
    """The loss and the whole gradients, by name, of every AdamW step."""
    # With the usual eps of 1e-8, a gradient of mere rounding errors would cause a full step.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5)
    history = []
    for micros in batches:
        total, count = 0.0, labels_of(micros)
        for micro in micros:
            with loss_parallel() if split else nullcontext():
                logits = model(**micro.inputs, use_cache=False).logits
                loss = token_loss(logits, micro.targets["labels"][:, -logits.shape[1] :])
                (loss / count).backward()
            total += loss.item() / count
        sum_partial_gradients(model.parameters())
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        whole_ones = {n: full_tensor(g) if isinstance(g, DTensor) else g.clone() for n, g in gradients.items()}
        history.append((total, whole_ones))
        optimizer.step()
        optimizer.zero_grad()
    return history


def _worst(one: list[tuple[float, dict[str, Tensor]]], other: list) -> tuple[float, float, str]:
    """The largest relative differences of losses and of gradients, and the name of that gradient."""
    losses = max(abs(a[0] - b[0]) / abs(a[0]) for a, b in zip(one, other, strict=True))
    worst, where = 0.0, ""
    for (_, expected), (_, got) in zip(one, other, strict=True):
        assert expected.keys() == got.keys(), expected.keys() ^ got.keys()
        largest = max(float(g.abs().max()) for g in expected.values())
        for name, gradient in expected.items():
            assert gradient.shape == got[name].shape, name
            # A gradient that is zero up to rounding (bias of keys) is measured against the largest gradient.
            scale = float(gradient.abs().max()) + 1e-2 * largest
            difference = float((gradient - got[name]).abs().max()) / scale
            worst, where = max((worst, where), (difference, name))
    return losses, worst, where


def _mesh(shard: int = 1, tensor: int = 2) -> DeviceMesh:
    return init_device_mesh("cpu", (1, 1, shard, tensor), mesh_dim_names=("pipeline", "replicate", "shard", "tensor"))


def _split(config: ModelConfig, mesh: DeviceMesh, sequence: bool = False) -> PreTrainedModel:
    model = _model(config)
    parallelize_tensor(model, config.spec, mesh, sequence)
    assert all(isinstance(parameter, DTensor) and parameter.is_meta for parameter in model.parameters())
    return model


def _compare(config: ModelConfig, ranks: int) -> list[tuple[float, float, str]]:
    """Differences from one process: tensor parallel with whole sequences, then with sequence parallelism."""
    torch.set_num_threads(1)
    mesh, vocabulary = _mesh(tensor=ranks)["tensor"], config.config["vocab_size"]
    one = _steps(_fill(_model(config), config), _batches(vocabulary), split=False)
    return [
        _worst(one, _steps(_fill(_split(config, mesh, sequence), config), _batches(vocabulary), split=True))
        for sequence in (False, True)
    ]


def _check(results: list[tuple[float, float, str]], tolerance: float = GRADIENT_TOLERANCE) -> None:
    for losses, gradients, where in results:
        assert losses < LOSS_TOLERANCE, losses
        assert gradients < tolerance, (where, gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_process(family: str) -> None:
    # The gates of a recurrence amplify rounding errors over the positions, more than sums over heads do.
    tolerance = 10 * GRADIENT_TOLERANCE if family == "recurrent_gemma" else GRADIENT_TOLERANCE
    for compared in kept_ranks(_compare, 2, _config(family), 2):
        _check(compared, tolerance)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"vocab_size": 127}),
        ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
        ("gpt2", {"vocab_size": 129}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ],
)
def test_variants(family: str, changes: dict[str, Any]) -> None:
    """Tied embeddings, vocabularies that do not divide, one key head, norms after the residual."""
    for compared in kept_ranks(_compare, 2, _config(family, **changes), 2):
        _check(compared)


def test_four_ranks() -> None:
    for compared in kept_ranks(_compare, 4, _config("gpt2", vocab_size=130), 4):
        _check(compared)


def _with_fsdp(config: ModelConfig, sequence: bool) -> tuple[tuple[float, float, str], list[str]]:
    """Tensor 2 x shard 2: both data ranks see the same samples, so gradients are twice those of one process."""
    torch.set_num_threads(1)
    axes = _mesh(shard=2)
    one_model = _fill(_model(config), config)
    names = {name: parameter.detach().clone() for name, parameter in one_model.named_parameters()}
    one = _steps(one_model, _batches(config.config["vocab_size"]), split=False)
    model = _split(config, axes["tensor"], sequence)
    for block in [*blocks_of(model, config.spec), model]:
        fully_shard(block, mesh=axes["shard"], reshard_after_forward=False)
        block.set_force_sum_reduction_for_comms(True)  # type: ignore[attr-defined]
        block.set_gradient_divide_factor(2.0)  # type: ignore[attr-defined]
    _fill(model, config)
    wrong = [n for n, p in model.named_parameters() if not torch.equal(full_tensor(p), names[n])]  # type: ignore[arg-type]
    return _worst(one, _steps(model, _batches(config.config["vocab_size"]), split=True)), wrong


@pytest.mark.parametrize(
    ("family", "changes", "sequence"),
    [
        ("gpt2", {"vocab_size": 129}, False),
        ("llama", {"tie_word_embeddings": True}, True),
        ("persimmon", {}, True),
        ("codegen", {}, False),
    ],
)
def test_fsdp_on_top(family: str, changes: dict[str, Any], sequence: bool) -> None:
    """FSDP shards of tensor shards: filled without communication, joined to whole tensors, trained like one process."""
    for compared, wrong in kept_ranks(_with_fsdp, 4, _config(family, **changes), sequence):
        assert wrong == []
        _check([compared])


def _evaluations(config: ModelConfig, sequence: bool, length: int) -> list[tuple[dict, dict]]:
    mesh = _mesh()["tensor"]
    one, split = _fill(_model(config), config), _fill(_split(config, mesh, sequence), config)
    results = []
    for (micro, _), samples in itertools.product(_batches(config.config["vocab_size"], length), (None, 1)):
        inputs, targets = ({name: t[:samples] for name, t in part.items()} for part in (micro.inputs, micro.targets))
        with torch.no_grad(), loss_parallel():
            output = split(**inputs, use_cache=False)
            assert isinstance(output.logits, DTensor) and output.logits.to_local().shape[-1] < output.logits.shape[-1]
            sums = CausalLM().evaluate(output, targets)
        expected = CausalLM().evaluate(one(**inputs, use_cache=False), targets)
        assert not any(isinstance(value, DTensor) for value in sums.values())
        results.append(({k: float(v) for k, v in expected.items()}, {k: float(v) for k, v in sums.items()}))
    return results


@pytest.mark.parametrize(("sequence", "length"), [(False, 16), (True, 16), (True, 15)])
def test_evaluation_of_split_logits(sequence: bool, length: int) -> None:
    """Loss and correct predictions without gathering logits, also of a single sample; lengths that do not divide run on
    whole sequences."""
    for results in kept_ranks(_evaluations, 2, _config("gpt2", vocab_size=129), sequence, length):
        for expected, got in results:
            assert got == pytest.approx(expected, rel=1e-5)


def _gathers(config: ModelConfig) -> dict[str, int]:
    mesh = _mesh()["tensor"]
    model = _fill(_split(config, mesh), config)
    (micro, _) = next(_batches(128))
    with CommDebugMode() as counted, loss_parallel():
        logits = model(input_ids=micro.inputs["input_ids"], use_cache=False).logits
        loss = token_loss(logits, micro.targets["labels"])
        loss.backward()
    return {str(name).rsplit(".", 1)[-1]: count for name, count in counted.get_comm_counts().items()}


def test_a_block_sums_twice_in_each_direction() -> None:
    """Four all-reduces for each of two blocks, whatever their projections; embedding, head and loss add five."""
    for counts in kept_ranks(_gathers, 2, _config("llama")):
        assert counts == {"all_reduce": 4 * 2 + 5}


def _recomputed(config: ModelConfig, compiled: bool) -> tuple[float, float, str]:
    mesh = _mesh()["tensor"]
    one = _steps(_fill(_model(config), config), _batches(128), split=False)
    split = _split(config, mesh, True)
    blocks = blocks_of(split, config.spec)
    recompute(blocks, "full")
    if compiled:
        for block in blocks:
            block.compile(dynamic=False, backend="aot_eager")
    return _worst(one, _steps(_fill(split, config), _batches(128), split=True))


class _Chained(torch.nn.Module):
    """Two pipeline stages of one model, one after the other on the same ranks."""

    def __init__(self, parts: list[PreTrainedModel]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        hidden = self.parts[0](input_ids=input_ids, **inputs).logits
        positions = min(input_ids.shape[1], getattr(self.parts[0].config, "max_latents", input_ids.shape[1]))
        assert not isinstance(hidden, DTensor) and hidden.shape[1] == positions
        return self.parts[1](inputs_embeds=hidden, **inputs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for part in self.parts:
            yield from part.named_parameters(*args, **kwargs)


def _staged(config: ModelConfig, sequence: bool) -> tuple[float, float, str]:
    torch.set_num_threads(1)
    mesh, layers = _mesh()["tensor"], config.config.get("n_layer") or config.config["num_hidden_layers"]
    one = _fill(_model(config), config)
    parts = []
    for stage in range(2):
        part = cut_stage(_model(config), config.spec, stage, 2, [1, layers - 1])
        parallelize_tensor(part, config.spec, mesh, sequence)
        part.to_empty(device="cpu")
        whole_ones = dict([*one.named_parameters(remove_duplicate=False), *one.named_buffers()])
        with torch.no_grad():
            for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
                local = local_part(whole_ones[name], tensor) if isinstance(tensor, DTensor) else whole_ones[name]
                (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).copy_(local)
        parts.append(part)
    # One step: only a real pipeline sums the gradients of both copies of a tied weight, so here they would differ.
    expected = _steps(one, itertools.islice(_batches(128), 1), split=False)
    got = _steps(_Chained(parts), itertools.islice(_batches(128), 1), split=True)  # type: ignore[arg-type]
    gradients = got[0][1]
    if "lm_head.weight" not in expected[0][1]:
        gradients[f"{cut_of(config.spec).embedding}.weight"] += gradients.pop("lm_head.weight")
    return _worst(expected, got)


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_of_a_pipeline(family: str) -> None:
    """Parts without embedding or head; hidden states between them are whole, under sequence parallel too."""
    _check(kept_ranks(_staged, 2, _config(family), True))


@pytest.mark.parametrize("compiled", [False, True])
def test_recompute_and_compile(compiled: bool) -> None:
    _check(kept_ranks(_recomputed, 2, _config("llama"), compiled))
