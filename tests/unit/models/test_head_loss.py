"""Tests of heads that compute the loss in chunks: loss and gradients equal those of full logits, with the scaling and
capping of several architectures; ``model.loss=auto`` chooses chunks for large vocabularies; and ``chunked`` and
``liger`` are refused where the model, the task or the machine does not allow them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trireme.errors import Problem, UserError
from trireme.models.check_loss import LARGE, check_loss, in_pieces
from trireme.models.family import ModelFamily, families
from trireme.models.head_loss import Asked, HeadLoss, head_loss
from trireme.models.head_output import HeadOutput, logit_map
from trireme.models.loss import IGNORE, most_likely, token_log_probabilities, token_loss
from trireme.models.model_config import ModelConfig
from trireme.models.other_families import described, other_family
from trireme.trainer.tasks.causal_lm import CausalLM
from trireme.trainer.tasks.masked_lm import MaskedLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
    "falcon_h1": {"lm_head_multiplier": 0.4, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "recurrent_gemma": {"logits_soft_cap": 2.0, "lru_width": 16, "num_hidden_layers": 3},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 32, "vocab_size": 64},
    "bert": {},
}
HERE = torch.device("cpu")


def built(kind: str, **fields: Any) -> tuple[PreTrainedModel, ModelFamily]:
    """A small model with random weights."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**({} if kind == "gptj" else SMALL), **fields})
    factory = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    config.use_cache = False
    model = factory.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    known = {family.model_type: family for family in families().values()}
    return model, described(known.get(kind) or other_family(kind), model)


def ask(targets: dict[str, Any], training: bool) -> Asked:
    return Asked(targets["labels"], likeliest=not training)


def attached(kind: str, model: PreTrainedModel, family: ModelFamily) -> HeadLoss:
    with torch.device("meta"):
        blueprint = type(model)(model.config)
    found = head_loss("chunked", blueprint, family, ask, HERE)
    assert found is not None
    found.attach(model, family)
    return found


def example() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, 64, (2, 9))
    labels = torch.randint(1, 64, (2, 9))
    labels[0, 4:7] = labels[1, 0] = IGNORE
    return ids, labels


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_losses_of_heads_are_those_of_their_logits(kind: str) -> None:
    model, family = built(kind, **FAMILIES[kind])
    ids, labels = example()
    logits = model(input_ids=ids).logits
    plain = token_loss(logits, labels, 0.1, 0.01)
    wanted = gradients(plain, model)
    head = attached(kind, model, family)
    with head.running(Asked(labels, smoothing=0.1, z_loss=0.01)):
        given = model(input_ids=ids).logits
    assert isinstance(given, HeadOutput)
    loss = token_loss(given, labels, 0.1, 0.01)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    found = gradients(loss, model)
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6 * largest)
    with torch.no_grad(), head.running(ask({"labels": labels}, False)):
        tokens = most_likely(model(input_ids=ids).logits)
    assert torch.equal(tokens[labels != IGNORE], logits.argmax(-1)[labels != IGNORE])
    torch.testing.assert_close(model(input_ids=ids).logits, logits)  # nobody asks for losses


def test_log_probabilities_that_weigh_tokens() -> None:
    model, family = built("gemma2", final_logit_softcapping=2.0)
    ids, labels = example()
    plain = token_log_probabilities(model(input_ids=ids).logits, labels)
    head = attached("gemma2", model, family)
    with head.running(Asked(labels, summed=False)):
        found = token_log_probabilities(model(input_ids=ids).logits, labels)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    one, other = (gradients(each[0].sum().exp() - each[1].sum() ** 2, model) for each in (found, plain))
    for name in other:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4 * float(other[name].abs().max()))


def test_weights_of_tokens() -> None:
    model, family = built("cohere", logit_scale=0.3)
    ids, labels = example()
    weights = torch.rand(labels.shape)
    logits = model(input_ids=ids).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    wanted = float((each * weights).sum())
    assert token_loss(logits, labels, weights=weights).item() == pytest.approx(wanted, rel=1e-6)
    task, head = CausalLM(), attached("cohere", model, family)
    targets = {"labels": labels, "weights": weights}
    with head.running(task.ask(targets, training=True)):
        outputs = model(input_ids=ids)
    assert task.loss(outputs, targets).item() == pytest.approx(wanted, rel=1e-6)


def test_a_multiplier_that_is_lost_is_not_lost_in_silence() -> None:
    model, family = built("granite", logits_scaling=3.0)
    head = attached("granite", model, family)
    ids, labels = example()
    model.config.logits_scaling = 2.0
    with head.running(Asked(labels)), pytest.raises(UserError, match="changes its logits in another way"):
        model(input_ids=ids)


def test_losses_are_no_logits() -> None:
    model, family = built("cohere")
    head = attached("cohere", model, family)
    ids, labels = example()
    with head.running(Asked(labels)):
        given = model(input_ids=ids).logits
    with pytest.raises(UserError, match=r"(?s)argmax on logits.* model\.loss=plain"):
        given.argmax(-1)
    with pytest.raises(UserError, match="smoothing"):
        token_loss(given, labels, 0.1)
    assert torch.cat([given.narrow(0, 1, 1)] * 2).losses.shape == (2, 9)


def test_what_cannot_be_done_in_pieces_is_named() -> None:
    with torch.device("meta"):
        bart = AutoModelForSeq2SeqLM.from_config(
            CONFIG_MAPPING["bart"](d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=64)
        )
    found, _, why = logit_map(bart, bart.lm_head)
    assert found is None and "add" in why
    with torch.device("meta"):
        t5 = AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING["t5"](num_layers=1))
    assert logit_map(t5, t5.lm_head)[2] == ""
    family = described(other_family("bart"), bart)
    assert head_loss("auto", bart, family, ask, HERE) is None
    for choice in ("chunked", "liger"):
        with pytest.raises(UserError) as raised:
            head_loss(choice, bart, family, ask, HERE)  # type: ignore[arg-type]
        (problem,) = raised.value.problems
        assert isinstance(problem, Problem) and problem.field == "model.loss"


def test_auto_takes_pieces_for_large_vocabularies() -> None:
    assert not in_pieces("auto", LARGE - 1) and in_pieces("auto", LARGE)
    assert in_pieces("chunked", 10) and not in_pieces("plain", 10**6)
    for words, wanted in ((LARGE - 1, False), (LARGE, True)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**{**SMALL, "vocab_size": words}))
        family = described(families()["llama"], model)
        assert (head_loss("auto", model, family, ask, HERE) is not None) is wanted
        assert head_loss("plain", model, family, ask, HERE) is None
        assert head_loss("auto", model, family, None, HERE) is None


class OwnLoss(CausalLM):
    """Overrides ``loss`` and reads logits there, as a custom task may."""

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        return outputs.logits.float().logsumexp(-1).sum()


class OwnName(CausalLM):
    """Overrides no method that reads logits."""

    metric_names = ("loss",)


OwnLoss.loss.__module__ = "mine.tasks"


def test_tasks_that_read_logits_get_them() -> None:
    assert CausalLM().head_gives_losses() and MaskedLM().head_gives_losses() and OwnName().head_gives_losses()
    assert not OwnLoss().head_gives_losses()
    config = ModelConfig("llama", {}, loss="chunked")
    (problem,) = check_loss(config, OwnLoss().head_gives_losses(), 1)
    assert "from logits" in problem.why
    assert check_loss(config, True, 2) == []


def test_liger_needs_its_package_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("llama", {}, loss="liger")
    for found, tensor, here, wanted in (
        (None, 1, True, "liger-kernel, which is not installed"),
        (object(), 1, True, "needs a GPU"),
        (object(), 2, False, "tensor ranks"),
    ):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        (problem,) = check_loss(config, True, tensor, here)
        assert wanted in problem.why and problem.field == "model.loss"
    assert check_loss(config, True, 1, here=False) == []
