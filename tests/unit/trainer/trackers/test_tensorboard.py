"""Tests of the TensorBoard tracker: the values that TensorBoard's reader finds, also after a resume, and disk errors,
which do not end the run.
"""

from __future__ import annotations

import logging

import pytest
from helpers.disk import full_disk
from helpers.running import until
from trireme.trainer.callbacks.tensorboard import TensorBoard as OfOlderRecipes
from trireme.trainer.trackers.tensorboard import TensorBoard

pytest.importorskip("tensorboard")


def write(run, begin, steps):
    run.state.step = begin
    callback = TensorBoard(system_seconds=None)
    run.fire("on_train_begin", callback)
    for run.state.step in steps:
        run.log(callback, run.state.step, loss=10.0 * begin + run.state.step, note="text", none=None)
        run.log(callback, run.state.step, eval_loss=2.0)
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


def test_a_full_disk_switches_it_off_with_one_warning(run, caplog):
    caplog.set_level(logging.WARNING)
    callback = TensorBoard()
    run.fire("on_train_begin", callback)
    with full_disk(4000):
        for step in range(1, 200):
            run.log(callback, step, loss=1.0)
        until(lambda: caplog.messages, 5)
        callback.close()
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("TensorBoard is off: ")


def test_a_folder_that_cannot_be_made_is_a_warning(run, caplog):
    (run.trainer.run_dir / "tensorboard").write_text("a file is in the way")
    callback = TensorBoard()
    run.fire("on_train_begin", callback)
    run.log(callback, 1, loss=1.0)
    callback.close()
    assert "TensorBoard is off" in caplog.text


def test_recipes_of_older_runs_find_it():
    assert OfOlderRecipes is TensorBoard
