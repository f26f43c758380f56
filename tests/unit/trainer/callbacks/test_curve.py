"""The callback ``curve`` draws the loss plot, which is complete after a resume; a failed drawing never stops a run."""

from __future__ import annotations

import json
import logging
import math

import pytest
from matplotlib.image import imread
from trireme.trainer.callbacks.curve import Curve, curve_figure, draw_curve


def lines(last, first=1):
    training = [{"step": s, "loss": 5 / s, "lr": 1e-3 / s, "grad_norm": 40.0 / s**2} for s in range(first, last + 1)]
    return [*training, {"step": last, "eval_loss": 5.5 / last}]


def test_curve_after_an_evaluation_and_at_the_end(run):
    run.trainer.reference_lines = {"unigram_entropy": 3.0}
    plot, callback = run.trainer.run_dir / "curve.png", Curve(every_seconds=3600)
    run.fire("on_train_begin", callback)
    for line in lines(10):
        assert not plot.exists()
        run.fire("on_log", callback, metrics=line)
    first = plot.read_bytes()
    for line in lines(20, first=11):
        run.fire("on_log", callback, metrics=line)
    assert plot.read_bytes() == first, "drawn again before every_seconds"
    run.fire("on_train_end", callback)
    assert plot.read_bytes() != first
    pixels = imread(plot)
    assert pixels.shape[1] > pixels.shape[0] > 600 and pixels.std() > 0.01
    assert sorted(file.name for file in run.trainer.run_dir.iterdir()) == ["curve.png"]


def test_a_resumed_curve_equals_the_uninterrupted_one(run, tmp_path):
    before, after = lines(6), lines(12, first=7)
    file = run.trainer.run_dir / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*before, {"step": 7, "loss": 9.0}]) + '{"step": 8, "l')
    run.state.step, callback = 6, Curve()
    run.fire("on_train_begin", callback)
    for line in after:
        run.fire("on_log", callback, metrics=line)
    run.fire("on_train_end", callback)
    draw_curve(before + after, tmp_path / "whole.png", "demo: Llama, plan single")
    assert (run.trainer.run_dir / "curve.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize(
    "drawn",
    [[], [{"step": 1, "loss": math.nan}], lines(200), [{"step": 1, "loss": 1.0, "lr": 0.0, "grad_norm": 0.0}]],
    ids=["empty", "nan", "long", "zeros"],
)
def test_any_run_can_be_drawn(tmp_path, drawn):
    draw_curve(drawn, tmp_path / "c.png", "a $strange_name", {"100 % $chance": 2.0})
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_a_plot_that_cannot_be_written_is_one_warning(run, caplog):
    caplog.set_level(logging.WARNING)
    (run.trainer.run_dir / "curve.png").mkdir()
    callback = Curve(every_seconds=0)
    run.fire("on_train_begin", callback)
    for line in [*lines(2), *lines(3)]:
        run.fire("on_log", callback, metrics=line)
    run.fire("on_train_end", callback)
    assert len(caplog.records) == 1 and "curve.png" in caplog.text


def test_other_ranks_draw_nothing(run):
    run.trainer.mesh.is_main = False
    callback = Curve()
    run.fire("on_train_begin", callback)
    run.fire("on_train_end", callback)
    assert list(run.trainer.run_dir.iterdir()) == []


def test_the_loss_has_its_unit_ends_on_gridlines_is_smoothed_and_shows_the_best_evaluation():
    evaluations = [{"step": step, "eval_loss": loss} for step, loss in ((10, 4.0), (20, 3.1), (30, 3.4))]
    figure = curve_figure([*lines(40)[:-1], *evaluations, {"step": 41, "loss": math.nan}], "demo: Llama, plan single")
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    ticks = axes.get_yticks()
    assert figure.get_suptitle() == "demo: Llama, plan single"
    assert axes.get_title(loc="left") == "loss (nats per token)"
    assert low == min(ticks) and high == max(ticks) and low <= 0.125 and high >= 5
    raw, smooth, held_out, best, not_finite = axes.get_lines()
    assert len(raw.get_xdata()) == len(smooth.get_xdata()) == 40 and raw.get_alpha() < smooth.get_linewidth()
    assert list(held_out.get_ydata()) == [4.0, 3.1, 3.4]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([20], [3.1])
    texts = [text.get_text().strip() for text in axes.texts]
    assert "best 3.100 at step 20" in texts and "not finite from step 41" in texts
    assert list(not_finite.get_xdata()) == [41, 41]
