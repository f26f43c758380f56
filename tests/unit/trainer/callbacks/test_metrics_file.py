"""Tests of the callback that writes ``metrics.jsonl``: which rank writes and when, NaN and infinity, and what the file
holds after a resume, after a full disk, or after somebody has deleted it.
"""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from helpers.disk import full_disk
from trireme.errors import UserError
from trireme.trainer.callbacks.metrics_file import MetricsFile, read_metrics


def started(run, step=0):
    run.state.step = step
    callback = MetricsFile()
    run.fire("on_train_begin", callback)
    return callback


def log_steps(run, callback, steps):
    for run.state.step in steps:
        run.fire("on_log", callback, metrics=run.line(loss=1.0 / run.state.step))


def path(run):
    return run.trainer.run_dir / "metrics.jsonl"


def steps_in(run):
    return [json.loads(line)["step"] for line in path(run).read_text().splitlines()]


def test_each_line_is_there_at_once(run):
    callback = started(run)
    for step in (1, 2, 3):
        log_steps(run, callback, [step])
        assert steps_in(run) == list(range(1, step + 1))


def test_only_the_main_rank_writes(run):
    run.trainer.mesh.is_main = False
    log_steps(run, started(run), [1])
    assert not path(run).exists()


def test_values_that_json_has_not(run):
    callback = started(run)
    values = {"loss": math.nan, "grad_norm": torch.tensor(math.inf), "low": -math.inf, "best": None, "count": 3}
    run.fire("on_log", callback, metrics=run.line(**values))
    raw = path(run).read_text()
    strict = json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"step": 0, "loss": "nan", "grad_norm": "inf", "low": "-inf", "best": None, "count": 3}
    (line,) = read_metrics(path(run))
    assert math.isnan(line["loss"]) and line["grad_norm"] == math.inf and line["low"] == -math.inf


@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "lo', b'{"step": 5, "text": "\xc3', b'{"step": 4, "loss": 0.25}'])
def test_resume_drops_later_and_torn_lines(run, torn):
    log_steps(run, started(run), [1, 2, 3, 4, 5])
    kept = path(run).read_bytes().splitlines(keepends=True)[:4]
    with path(run).open("ab") as file:
        file.write(torn)
    duplicate = kept[3:4] if torn.startswith(b'{"step": 4') else []  # whole but for its line break: kept as a line
    callback = started(run, step=4)
    assert path(run).read_bytes() == b"".join(kept + duplicate)
    log_steps(run, callback, [5, 6])
    assert steps_in(run) == [1, 2, 3, 4, *[4 for _ in duplicate], 5, 6]
    assert [file.name for file in run.trainer.run_dir.iterdir()] == ["metrics.jsonl"]


def test_a_fresh_run_starts_a_new_file(run):
    log_steps(run, started(run), [1, 2])
    log_steps(run, started(run), [1])
    assert steps_in(run) == [1]


def test_full_disk_delays_lines_and_warns_once(run, caplog):
    caplog.set_level(logging.INFO)
    callback = started(run)
    log_steps(run, callback, [1, 2])
    before = path(run).read_bytes()
    with full_disk(len(before) + 10):
        log_steps(run, callback, [3, 4, 5])
        assert path(run).read_bytes() == before, "half a line was left behind"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "metrics.jsonl" in caplog.text
    log_steps(run, callback, [6])
    assert steps_in(run) == [1, 2, 3, 4, 5, 6]
    run.fire("on_train_end", callback)


def test_a_disk_still_full_at_the_end_is_an_error(run):
    callback = started(run)
    log_steps(run, callback, [1])
    with full_disk(path(run).stat().st_size):
        log_steps(run, callback, [2, 3])
        with pytest.raises(UserError, match=r"metrics\.jsonl(.|\n)*2 lines"):
            run.fire("on_train_end", callback)
    callback.close()  # the disk is free by now
    assert steps_in(run) == [1, 2, 3]


def test_a_file_removed_meanwhile_comes_back_without_holes(run):
    callback = started(run)
    log_steps(run, callback, [1, 2])
    path(run).unlink()
    log_steps(run, callback, [3, 4])
    assert steps_in(run) == [3, 4]


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(run):
    path(run).mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl(.|\n)*run\.dir"):
        started(run)
