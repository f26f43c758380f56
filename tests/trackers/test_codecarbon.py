"""Test with the real CodeCarbon library: its CSV file, its energy figures among the training metrics, and the refusal
of an unknown country.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from helpers.tracked import train_twice
from trireme.trainer.trackers.codecarbon import CodeCarbon


def test_energy_of_a_resumed_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "oars"
    train_twice(run_dir, "codecarbon", "callbacks.codecarbon.country=DEU", artifacts="")
    with open(run_dir / "emissions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["country_iso_code"] for row in rows] == ["DEU", "DEU"], "a row for each start of the run"
    assert all(float(row["energy_consumed"]) > 0 and float(row["emissions"]) > 0 for row in rows)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("energy_kwh", 0) > 0 and line["co2_kg"] > 0 for line in lines)


def test_an_unknown_country_is_refused() -> None:
    with pytest.raises(ValueError, match="country='Germany' is not an ISO code of three letters"):
        CodeCarbon(country="Germany")
