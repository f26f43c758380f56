"""Tests of optimizers: every shipped YAML file builds one, any other is built by its import path, implementations of
AdamW agree, and norms and biases get no weight decay.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from trireme.trainer.optimizers import decay_groups, optimizer_factory

GROUP = Path(__file__).parents[3] / "configs" / "optimizer"


def _parameters() -> list[tuple[str, torch.nn.Parameter]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 4))
    return list(model.named_parameters())


def test_norms_and_biases_do_not_decay() -> None:
    decayed, exempt = decay_groups(_parameters())
    assert [tuple(p.shape) for p in decayed["params"]] == [(10, 8), (4, 8)]
    assert [tuple(p.shape) for p in exempt["params"]] == [(8,), (8,), (4,)]
    assert exempt["weight_decay"] == 0.0


@pytest.mark.parametrize("path", sorted(GROUP.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_builds_and_steps(path: Path) -> None:
    component = yaml.safe_load(path.read_text())
    component.update({key: float(value) for key, value in component.items() if key in ("lr", "eps")})
    parameters = _parameters()
    optimizer = optimizer_factory(component)(parameters)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [component["lr"]] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [component["weight_decay"], 0.0]
    before = [p.detach().clone() for _, p in parameters]
    sum((p**2).sum() for _, p in parameters).backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for (name, p), old in zip(parameters, before, strict=True) if old.any())


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for_loop"])
def test_implementations_agree(implementation: str) -> None:
    results = []
    for choice in ("auto", implementation):
        parameters = _parameters()
        optimizer = optimizer_factory(
            {"_target_": "trireme.trainer.optimizers.adamw", "lr": 0.1, "implementation": choice}
        )(parameters)
        sum((p**3).sum() for _, p in parameters).backward()
        optimizer.step()
        results.append(torch.cat([p.detach().flatten() for _, p in parameters]))
    torch.testing.assert_close(*results)


def test_any_optimizer_by_its_path() -> None:
    optimizer = optimizer_factory({"_target_": "torch.optim.RAdam", "lr": 0.5})(_parameters())
    assert isinstance(optimizer, torch.optim.RAdam) and optimizer.param_groups[0]["initial_lr"] == 0.5


def test_warnings_of_bitsandbytes_are_hidden(tmp_path: Path) -> None:
    """bitsandbytes warns while it is imported, once in a process."""
    program = (
        "import torch; from trireme.trainer.optimizers import adamw_8bit; "
        "adamw_8bit([{'params': [torch.nn.Parameter(torch.ones(2))]}], lr=1e-3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr
