"""``trireme check`` refuses a custom model family that does not match its model, and names the wrong field."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import ROOTS
from helpers.own_code import EXAMPLES, fresh_modules
from trireme.launch.cli import main


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('blocks="blocks"', 'blocks="layers"', "names a list of blocks layers, which Decay does not have"),
        ('embedding="embed"', 'embedding="embedding"', "names embedding among its embeddings"),
        ('final_norm="norm"', 'final_norm="last_norm"', "names last_norm among its parts of a cut"),
        ('head="head"', 'head="lm_head"', "names lm_head among its heads"),
        ('context=""', 'context="n_positions"', "names the field n_positions of the configuration"),
        ('"mix.gate", "up"', '"up"', "has a tensor plan for blocks without mix.gate"),
        ('inputs=("mix", "up")', 'inputs=("attn", "up")', "names attn in its tensor plan"),
        ('splits=(("num_heads", 1),)', 'splits=(("heads", 1),)', "names the field heads of the configuration"),
        ('model_type="decay"', 'model_type="other"', "transformers has no model_type 'other'"),
        ("AutoModelForCausalLM.register(DecayConfig, Decay, exist_ok=True)", "", "AutoModelForCausalLM.register("),
        ("inputs_embeds=None, **others", "inputs_embeds=None", "Decay.forward takes no attention_mask"),
        ("inputs_embeds=None, **others", "attention_mask=None", "Decay.forward takes no inputs_embeds"),
        ("FAMILY = decoder(", "FAMILY = dict(", "is a dict, not a ModelFamily"),
        ("FAMILY = decoder(", "OTHER = decoder(", "has no attribute 'FAMILY'"),
        ("import torch\n", "import torhc\n", "cannot be imported: No module named 'torhc'"),
        ("num_heads: int = 4", "heads: int = 4", "unknown key of DecayConfig"),
    ],
)
def test_mistakes_of_a_family(
    right: str,
    wrong: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", dict(CONFIG_MAPPING._extra_content))
    monkeypatch.setattr(MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", {})
    CONFIG_MAPPING._extra_content.pop("decay", None)
    path = EXAMPLES["decay"].write(tmp_path)
    file = tmp_path / "mine" / "decay.py"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    with fresh_modules():
        assert main(["check", path, "plan=ddp", "--nproc", "2"]) == 2
    message = capsys.readouterr().err
    assert words in message and "model." in message, message


def test_an_error_in_a_model_of_ones_own_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES["decay"].write(tmp_path)
    file = tmp_path / "mine" / "decay.py"
    file.write_text(file.read_text().replace("return self.out(mean.flatten(2) * gate)", "return self.out(mean)"))
    with fresh_modules():
        assert main(["train", path, ROOTS, f"run.dir={tmp_path / 'run'}", "trainer.max_steps=1"]) == 1
    message = capsys.readouterr().err
    assert "model.family" in message and "mine.decay.Decay raises RuntimeError: mat1 and mat2" in message
    assert "decay.py, line" in message and "Traceback" not in message
