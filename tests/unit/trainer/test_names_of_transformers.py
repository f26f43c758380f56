"""Tests that docs/callbacks.md names every event, flag and field of transformers' callbacks, and that the counterparts
which it names exist.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.trainer_state import ELSEWHERE, Control

PAGE = (Path(__file__).parents[3] / "docs" / "callbacks.md").read_text()
TABLE = PAGE.partition("## Names of transformers")[2].partition("\n`export`")[0]


def _named() -> dict[str, str]:
    """Name in transformers -> its explanation on the page."""
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", TABLE, re.MULTILINE)
    return {name: here for there, here in rows for name in re.findall(r"`(\w+)`", there)}


def test_every_name_is_on_the_page() -> None:
    events = {name for name in vars(TrainerCallback) if name.startswith("on_")}
    fields = {field.name for kind in (TrainerState, TrainerControl) for field in dataclasses.fields(kind)}
    assert len(events) > 14 and len(fields) > 20
    assert not (events | fields) - _named().keys()


def test_events_that_have_the_same_name_are_called() -> None:
    same = [name for name, here in _named().items() if here.startswith("the same names")]
    assert len(same) > 12 and all(callable(getattr(Callback, name)) for name in same)


def test_every_flag_leads_to_a_request() -> None:
    flags = {field.name for field in dataclasses.fields(TrainerControl)}
    assert flags == ELSEWHERE.keys()
    assert set(ELSEWHERE.values()) <= {field.name for field in dataclasses.fields(Control)}
    assert all(
        f"control.{'request_stop' if ours == 'stop' else ours}" in _named()[flag] for flag, ours in ELSEWHERE.items()
    )
