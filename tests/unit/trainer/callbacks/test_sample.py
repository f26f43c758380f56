"""Tests of the callback ``sample``, which generates texts during training: the training stays the same, texts can be
reproduced, and runs that cannot generate are refused or go without samples.
"""

from __future__ import annotations

import io
import sys

import pytest
import torch
from trireme.errors import UserError
from trireme.trainer.callbacks.sample import Sample


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")


@pytest.fixture
def text_run(run, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=48, eos_token_id=None,
                         bos_token_id=None)  # fmt: skip
    torch.manual_seed(0)
    run.trainer.strategy.module = LlamaForCausalLM(config).train()
    run.trainer.tokenizer = tokenizer
    return run


def samples(run):
    return (run.trainer.run_dir / "samples.txt").read_text(encoding="utf-8")


def test_training_is_not_changed(text_run):
    module = text_run.trainer.strategy.module
    module.model.layers[0].eval()  # a part that its family keeps in evaluation mode
    modes = {name: part.training for name, part in module.named_modules()}
    random_state, weights = torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    text_run.fire("on_train_end", Sample(["def f(", ""], max_new_tokens=5))
    assert torch.equal(random_state, torch.get_rng_state())
    assert modes == {name: part.training for name, part in module.named_modules()}
    assert all(torch.equal(weights[k], v) for k, v in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_text_is_shown_and_kept(text_run, capsys):
    text_run.state.step = 10
    text_run.fire("on_train_end", Sample(["import [bold]os", "x"], max_new_tokens=5))
    assert samples(text_run).count("--- step 10") == 2
    assert "--- step 10\nimport [bold]os" in samples(text_run)
    shown = capsys.readouterr().out
    assert "import [bold]os" in shown and "sample at step 10" in shown and "\x1b" not in shown


def test_the_text_depends_on_seed_and_step_only(text_run):
    texts = []
    for step, noise in ((3, 1), (3, 2), (4, 2)):
        torch.manual_seed(noise)
        strategy, tokenizer = text_run.trainer.strategy, text_run.trainer.tokenizer
        seed = text_run.trainer.recipe.seed + step
        texts.append(Sample(["a"], max_new_tokens=20).generate(strategy, tokenizer, seed))
    assert texts[0] == texts[1] != texts[2]


def test_after_evaluations_only_if_asked_and_once_per_step(text_run):
    for every_evaluation, count in ((False, 1), (True, 2)):
        text_run.state.step = 0
        callback = Sample(["a"], max_new_tokens=2, every_evaluation=every_evaluation)
        text_run.fire("on_train_begin", callback)  # a fresh run starts a new file
        for text_run.state.step in (5, 10):
            text_run.evaluate(callback, eval_loss=1.0)
        text_run.fire("on_train_end", callback)
        assert samples(text_run).count("--- step") == count


def test_greedy_and_the_end_of_the_context(text_run):
    strategy, tokenizer = text_run.trainer.strategy, text_run.trainer.tokenizer
    for callback in (Sample(["a" * 100], max_new_tokens=500), Sample(["ab"], max_new_tokens=46, temperature=0)):
        (text,) = callback.generate(strategy, tokenizer, seed=0)
        assert len(tokenizer(text)["input_ids"]) >= 40
    greedy = Sample(["ab"], max_new_tokens=9, temperature=0)
    assert greedy.generate(strategy, tokenizer, seed=0) == greedy.generate(strategy, tokenizer, seed=1)


def test_a_model_without_text_is_refused(run):
    run.trainer.strategy.module = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"callbacks\.sample"):
        run.fire("on_train_begin", Sample(["a"]))


@pytest.mark.parametrize("wrong", [{"prompts": []}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sample(**{"prompts": ["a"], **wrong})


def test_characters_that_a_terminal_cannot_show_do_not_end_the_run(text_run, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", screen)
    text_run.fire("on_train_end", Sample(["naïve \x1b[2J"], max_new_tokens=2))
    shown = screen.buffer.getvalue()
    assert b"na?ve" in shown and b"\x1b" not in shown
    assert "naïve \x1b[2J" in samples(text_run)


def test_a_plan_that_does_not_generate_goes_without_samples(text_run):
    text_run.trainer.strategy.generates = False
    text_run.trainer.recipe.plan = text_run.trainer.strategy.plan
    callback = Sample(["a"], max_new_tokens=2)
    text_run.fire("on_train_begin", callback)
    text_run.fire("on_train_end", callback)
    assert not (text_run.trainer.run_dir / "samples.txt").exists()
