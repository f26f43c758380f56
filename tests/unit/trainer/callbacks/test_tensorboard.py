"""TensorBoard: the real reader finds all values, also after a resume; a failing disk does not end a run."""

from __future__ import annotations

import importlib.util
import logging

import pytest
from trireme.errors import UserError
from trireme.trainer.callbacks.tensorboard import TensorBoard

pytest.importorskip("tensorboard")


def write(run, begin, steps):
    run.state.step = begin
    callback = TensorBoard()
    run.fire("on_train_begin", callback)
    for run.state.step in steps:
        run.fire("on_log", callback, metrics=run.line(loss=10.0 * begin + run.state.step, note="text", none=None))
        run.fire("on_log", callback, metrics=run.line(eval_loss=2.0))
    callback.close()


def scalars(run, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.trainer.run_dir / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/loss", "train/loss"]
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_by_step_and_purged_on_resume(run):
    write(run, 0, [1, 2, 3])
    assert scalars(run, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    write(run, 2, [3, 4])
    assert scalars(run, "train/loss") == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]
    assert scalars(run, "eval/loss")[0] == (1, 2.0)


def test_only_the_main_rank_writes(run):
    run.trainer.mesh.is_main = False
    write(run, 0, [1])
    assert list(run.trainer.run_dir.iterdir()) == []


def test_a_full_disk_switches_it_off_with_one_warning(run, caplog, full_disk):
    caplog.set_level(logging.WARNING)
    callback = TensorBoard()
    run.fire("on_train_begin", callback)
    with full_disk(2000):
        for run.state.step in range(100):
            run.fire("on_log", callback, metrics=run.line(loss=1.0))
        callback.close()
    assert [record.name for record in caplog.records] == ["trireme.trainer.callbacks.tensorboard"]


def test_a_folder_that_cannot_be_made_is_a_warning(run, caplog):
    (run.trainer.run_dir / "tensorboard").write_text("a file is in the way")
    callback = TensorBoard()
    run.fire("on_train_begin", callback)
    run.fire("on_log", callback, metrics=run.line(loss=1.0))
    assert "TensorBoard is off" in caplog.text


def test_a_missing_library_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoard()
