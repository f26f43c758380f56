"""Tests of preference losses: DPO, IPO and KTO equal the formulas of their papers, also for packed texts. Padding rows
count nothing, the custom loss in the docs is correct, and KTO reports only metrics of answers that occur.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.adapted import config_of, filled
from helpers.preferences import JUDGED, PAIRS, corpus_of, plain_judged, plain_logp, plain_pair
from torch import nn
from trireme.models.document_attention import attend_within_documents
from trireme.parallel.micro_batch import MicroBatch
from trireme.trainer.sum_check import SumCheck
from trireme.trainer.tasks.dpo import DPO
from trireme.trainer.tasks.ipo import IPO
from trireme.trainer.tasks.kto import KTO
from trireme.trainer.tasks.preference import Preference

KINDS: dict[str, Preference] = {
    "dpo": DPO(),
    "smoothed": DPO(beta=0.5, label_smoothing=0.2),
    "normalised": DPO(beta=5.0, length_normalised=True),
    "sft": DPO(sft=0.5),
    "ipo": IPO(),
}
Models = tuple[nn.Module, nn.Module]


@pytest.fixture(scope="module")
def models() -> Models:
    """A policy and a reference model with different weights."""
    policy, reference = (filled(config_of("llama", vocab_size=300), seed) for seed in (0, 1))
    attend_within_documents(policy)
    return policy, reference


def referred(corpus: Any, reference: nn.Module) -> None:
    """Give each sample the reference's log-probabilities of its texts."""
    values = []
    with torch.no_grad():
        for sample in (corpus.rows[index] for index in range(len(corpus.rows))):
            sides = ((sample[f"{side}_ids"], sample[f"{side}_labels"]) for side in ("first", "second"))
            values.append([float(plain_logp(reference, *side)[0]) for side in sides])
    corpus.rows.beside["reference"] = np.array(values, np.float32)


def gradients(policy: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Norm of the difference of two gradients, as a share of the norm of the first."""
    assert len(one) == len(other) > 0
    both = [torch.cat([each.flatten().double() for each in some]) for some in (one, other)]
    return float((both[0] - both[1]).norm() / both[0].norm())


def of_engine(policy: nn.Module, task: Preference, micros: list[MicroBatch]) -> tuple[torch.Tensor, int]:
    if task.estimates:
        sums: dict[str, float] = {}
        for micro in micros:
            assert micro.beside is not None
            found = task.estimate(policy(**micro.beside.inputs), micro.beside.targets)
            sums = {name: sums.get(name, 0.0) + value.item() for name, value in found.items()}
        task.take_estimate(sums)
    losses = [task.loss(policy(**micro.inputs), micro.targets) for micro in micros]
    return torch.stack(losses).sum(), sum(task.count(micro.targets) for micro in micros)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_has_the_loss_and_the_gradient_of_the_paper(kind: str, models: Models, tmp_path: Path) -> None:
    task, (policy, reference) = KINDS[kind], models
    corpus = corpus_of(PAIRS[:12], tmp_path, task)
    referred(corpus, reference)
    batch = next(corpus.train_batches({}, 0, 1))
    assert [micro.rows for micro in batch.micro_batches] == [8, 8] and batch.labels == 8
    loss, count = of_engine(policy, task, batch.micro_batches)
    samples = [corpus.rows[index] for index in batch.samples]
    wanted = torch.stack([plain_pair(kind, task.beta, policy, reference, sample) for sample in samples]).sum()
    assert count == 8 and loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    found = gradients(policy, loss)
    assert distance(gradients(policy, wanted), found) < 1e-5


def test_the_divergence_of_kto_is_that_of_the_global_batch(models: Models, tmp_path: Path) -> None:
    policy, reference = models
    totals = {}
    for micro in (8, 2):
        task = KTO(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)
        corpus = corpus_of(JUDGED[:16], tmp_path, task, micro=micro)
        referred(corpus, reference)
        batch = next(corpus.train_batches({}, 0, 1))
        loss, count = of_engine(policy, task, batch.micro_batches)
        samples = [corpus.rows[index] for index in batch.samples]
        wanted = plain_judged(0.3, (1.2, 0.7), policy, reference, samples)
        assert count == 8 and loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        found = gradients(policy, loss)
        assert distance(gradients(policy, wanted), found) < 1e-5
        totals[micro] = loss.item(), task.divergence
    assert totals[8] == pytest.approx(totals[2], rel=1e-6) and totals[8][1] != 0


@pytest.mark.parametrize("task", [DPO(sft=0.3), IPO(), KTO()], ids=["dpo", "ipo", "kto"])
def test_packed_samples_give_what_they_give_alone(task: Preference, models: Models, tmp_path: Path) -> None:
    policy, reference = models
    rows = JUDGED[:14] if isinstance(task, KTO) else PAIRS[:14]
    alone = corpus_of(rows, tmp_path, task, micro=1)
    packed = corpus_of(rows, tmp_path, task, micro=1, packing="bins", block_size=96)
    for corpus in (alone, packed):
        referred(corpus, reference)
    assert len(packed.train) < 8 and packed.train.bins.fill > 0.6
    single = [alone.collator.micro_batch([{**alone.rows[index], "position": index}]) for index in range(14)]
    binned = [
        packed.collator.micro_batch([{**packed.train[index], "position": index}]) for index in range(len(packed.train))
    ]
    assert all("position_ids" in micro.inputs and "attention_mask" not in micro.inputs for micro in binned)
    one, two = (of_engine(policy, task, micros) for micros in (single, binned))
    assert one[1] == two[1] == 14 and one[0].item() == pytest.approx(two[0].item(), rel=1e-6)
    assert distance(gradients(policy, one[0]), gradients(policy, two[0])) < 1e-6
    summed = [
        {
            name: sum(float(task.evaluate(policy(**m.inputs), m.targets)[name]) for m in micros)
            for name in ("accuracy", "rewards/chosen")
        }
        for micros in (single, binned)
    ]
    assert summed[0] == pytest.approx(summed[1], rel=1e-5)


def test_the_two_texts_of_a_sample_have_noise_of_their_own(tmp_path: Path) -> None:
    alone = corpus_of(PAIRS[:8], tmp_path, DPO())
    micro = next(alone.train_batches({}, 0, 1)).micro_batches[0]
    assert micro.draws is not None and len(set(micro.draws.tolist())) == 8
    assert micro.samples.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and micro.per_sample == 2
    packed = corpus_of(PAIRS[:8], tmp_path, DPO(), packing="bins", block_size=96)
    found = [packed.collator.micro_batch([packed.train[at]]).documents for at in range(2 * len(packed.train))]
    numbers = [set(each.unique().tolist()) - {-1} for each in found if each is not None]
    assert sum(map(len, numbers)) == 2 * 16 and len(set.union(*numbers)) == 2 * 16  # other ones in every pass


def test_a_loss_that_is_a_mean_over_pairs_is_recognised(models: Models, tmp_path: Path) -> None:
    class Mean(DPO):
        def measured(self, outputs: Any, targets: dict[str, Any]) -> Any:
            found = super().measured(outputs, targets)
            return {**found, "loss": found["loss"] / found["labels"]}

    policy, reference = models
    corpus = corpus_of(PAIRS[:8], tmp_path, DPO())
    referred(corpus, reference)
    micro = next(corpus.train_batches({}, 0, 1)).micro_batches[0]
    verdicts = []
    for task in (Mean(), DPO()):
        check = SumCheck(task)
        check(policy(**micro.inputs), micro)
        verdicts.append(check._mean)
    assert verdicts == [True, False]


def test_padding_rows_count_nothing(models: Models, tmp_path: Path) -> None:
    policy, reference = models
    corpus = corpus_of(PAIRS[:6], tmp_path, task := DPO(), held_out=0.0, eval_sets={})
    referred(corpus, reference)
    corpus._sets["few"] = corpus.rows
    counted = [micro for micro in corpus.eval_batches(5, 0, 1, "few")]
    sums = [task.evaluate(policy(**copy.copy(micro).inputs), micro.targets) for micro in counted]
    assert [int(each["labels"]) for each in sums] == [4, 1] and all(each["loss"].isfinite() for each in sums)
    assert counted[1].samples.tolist() == [4, 4, -1, -1, -1, -1, -1, -1]


def test_the_example_loss_in_the_docs_is_correct(models: Models, tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "preference.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python")[1].split("```")[0], names)
    task, (policy, reference) = names["Hinge"](beta=0.2), models
    corpus = corpus_of(PAIRS[:8], tmp_path, task)
    referred(corpus, reference)
    batch = next(corpus.train_batches({}, 0, 1))
    loss, _ = of_engine(policy, task, batch.micro_batches)
    plain = [plain_pair("dpo", 0.2, policy, reference, corpus.rows[index]) for index in batch.samples]
    wanted = sum(max(0.0, 1 + torch.log(torch.exp(one) - 1).item()) for one in plain)  # log(1 + e^-margin) = loss
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_kto_reports_no_number_of_answers_that_are_not_there(side: str) -> None:
    other = "rejected" if side == "chosen" else "chosen"
    sums = {"loss": 1.0, "labels": 2.0, "accuracy": 1.0, side: 2.0, other: 0.0}
    sums |= {f"{what}/{each}": 3.0 for what in ("rewards", "logps") for each in (side, other)}
    found = KTO().metrics(sums)
    assert found[f"logps/{side}"] == 1.5 and not {f"logps/{other}", f"rewards/{other}", "margin"} & found.keys()
    assert set(KTO().metrics({**sums, other: 1.0})) == set(KTO.metric_names or ())
