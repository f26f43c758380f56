"""Tests of comparing a configuration with a checkpoint's config.json: only fields that change the outputs count."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from trireme.models.config_differences import other_fields
from trireme.models.family import families
from trireme.models.register_classes import register_classes


@pytest.mark.parametrize("name", families())
def test_a_configuration_equals_its_own_file_also_of_another_version(name: str, tmp_path: Path) -> None:
    register_classes(families()[name])
    config = CONFIG_MAPPING[families()[name].model_type]()
    config.save_pretrained(tmp_path)
    assert other_fields(config, tmp_path) == []
    file = tmp_path / "config.json"
    said = {**json.loads(file.read_text()), "transformers_version": "4.1.0", "torch_dtype": "bfloat16"}
    file.write_text(json.dumps({**said, "use_cache": False, "eos_token_id": 7}))
    assert other_fields(config, tmp_path) == []


def test_fields_that_compute_otherwise_are_named(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["llama"](rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    config.save_pretrained(tmp_path)
    other = copy.deepcopy(config)
    other.rms_norm_eps, other.rope_parameters = 0.5, {"rope_type": "default", "rope_theta": 50.0}
    assert other_fields(other, tmp_path) == ["rms_norm_eps", "rope_parameters"]
    assert other_fields(other, tmp_path, ["rms_norm_eps"]) == ["rope_parameters"]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        other_fields(config, tmp_path)
