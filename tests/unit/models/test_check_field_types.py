"""A model field of a wrong type in trireme's own models is reported before any sizes are compared."""

from __future__ import annotations

import pytest
from trireme.models.check_field_types import refuse_other_types
from trireme.models.perceiver_ar.perceiver_config import PerceiverARConfig
from trireme.models.transformer_xl.xl_config import TransfoXLConfig


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (PerceiverARConfig, "max_latents", "3"),
        (PerceiverARConfig, "layer_norm_eps", None),
        (TransfoXLConfig, "mem_len", 2.5),
        (TransfoXLConfig, "d_model", True),
    ],
)
def test_a_field_of_another_type_is_named(config: type, field: str, value: object) -> None:
    sound = config()
    refuse_other_types(sound, config)
    object.__setattr__(sound, field, value)
    with pytest.raises(TypeError, match=f"^Field '{field}' expected"):
        refuse_other_types(sound, config)
