"""Tests of the progress display (a live bar on a terminal, plain lines in a file) and of the spinner at start-up."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from trireme.parallel.strategy import StepLoss
from trireme.trainer import spinner
from trireme.trainer.callbacks.line_text import number
from trireme.trainer.callbacks.progress import Progress
from trireme.trainer.log_files import Terminal

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def log_line(run, callback, step):
    run.state.step = step
    run.fire("on_step_end", callback)
    metrics = run.line(loss=2.5, lr=3e-4, tokens_per_second=12345.0, grad_norm=1.0, tokens=step * 100)
    run.fire("on_log", callback, metrics=metrics)


@contextmanager
def terminal(monkeypatch):
    """Make sys.stderr a terminal of 80 columns; yields it, and a function that closes it and returns its text."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    main, side = pty.openpty()
    stream, got = os.fdopen(side, "w", buffering=1), []

    def read():
        while True:
            try:
                data = os.read(main, 65536)
            except OSError:  # Linux: EIO once the other side is closed
                return
            if not data:
                return
            got.append(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def text():
        stream.close()
        reader.join(timeout=10)
        return b"".join(got).decode()

    monkeypatch.setattr(sys, "stderr", stream)
    yield stream, text
    stream.close()
    reader.join(timeout=10)
    os.close(main)


def test_plain_lines_first_last_and_all_evaluations(run, capsys):
    callback = Progress(plain_every=3600)
    run.fire("on_train_begin", callback)
    for step in range(1, 11):
        log_line(run, callback, step)
        if step == 5:
            run.fire("on_log", callback, metrics=run.line(eval_loss=2.25))
    run.fire("on_train_end", callback)
    callback.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/10", "step 5/10", "step 5/10", "step 10/10"]
    assert re.fullmatch(r"step 1/10  loss 2\.5000  lr 3\.00e-04  12\.3k tok/s  [\d.]+ [MG]iB  eta 0:00:0\d", lines[0])
    assert lines[2] == "step 5/10  eval_loss 2.2500"


def test_values_of_a_metric_have_one_format():
    assert [number(value) for value in (0.0, 0.000154392, 0.0391, 8.33)] == ["0.0000", "0.0002", "0.0391", "8.3300"]
    assert [number(value) for value in (2.1e-6, 1234567.0, float("nan"), 3)] == ["2.1e-06", "1.23457e+06", "nan", "3"]


def test_plain_every_zero_shows_each_line(run, capsys):
    callback = Progress(plain_every=0)
    run.fire("on_train_begin", callback)
    for step in (1, 2, 3):
        log_line(run, callback, step)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_run_that_stops_early_shows_its_last_line(run, capsys):
    callback = Progress(plain_every=3600)
    run.fire("on_train_begin", callback)
    for step in (1, 2, 3):
        log_line(run, callback, step)
    run.fire("on_train_end", callback)
    assert capsys.readouterr().out.splitlines()[-1].startswith("step 3/10")


def test_other_ranks_are_silent(run, capsys):
    run.trainer.mesh.is_main = False
    callback = Progress(plain_every=0)
    run.fire("on_train_begin", callback)
    log_line(run, callback, 1)
    run.fire("on_log", callback, metrics=run.line(eval_loss=2.25))
    run.fire("on_train_end", callback)
    assert capsys.readouterr() == ("", "")


def test_live_bar_keeps_log_records_whole(run, monkeypatch):
    logger = logging.getLogger("test_progress")
    logger.setLevel(logging.INFO)
    with terminal(monkeypatch) as (stream, text):
        handler = logging.StreamHandler(stream)
        logger.addHandler(handler)
        callback = Progress(refresh_per_second=50)
        run.fire("on_train_begin", callback)
        assert handler.stream is not stream, "records would be written across the bar"
        for step in (1, 2):
            log_line(run, callback, step)
            logger.info("record %d [not/markup]", step)
        run.fire("on_log", callback, metrics=run.line(eval_loss=2.25))
        run.fire("on_train_end", callback)
        callback.close()
        assert handler.stream is stream and sys.stderr is stream
        logger.removeHandler(handler)
        raw = text()
    rows = [row.strip() for row in ESCAPES.sub("", raw).replace("\r", "\n").split("\n")]
    for expected in ("record 1 [not/markup]", "record 2 [not/markup]", "step 2/10  eval_loss 2.2500"):
        assert rows.count(expected) == 1
    last = [row for row in rows if row]
    assert re.match(r"demo .* 2/10 +20%", last[-2])
    assert re.match(r"loss 2\.5000  lr 3\.00e-04  12\.3k tok/s  .*iB  eval_loss 2\.2500", last[-1])
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l"), "the cursor stayed hidden"


def test_close_restores_the_terminal_after_a_failure(run, monkeypatch):
    with terminal(monkeypatch) as (stream, text):
        callback = Progress()
        run.fire("on_train_begin", callback)
        assert sys.stderr is not stream
        callback.close()
        assert sys.stderr is stream
        assert "\x1b[?25h" in text()


def test_a_piped_stdout_stays_clean_beside_a_live_bar(run, monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    with terminal(monkeypatch):
        callback = Progress()
        run.fire("on_train_begin", callback)
        print("data for a pipe")
        callback.close()
    assert pipe.getvalue() == "data for a pipe\n"


@pytest.mark.parametrize("wrong", [{"plain_every": -1}, {"refresh_per_second": 0}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Progress(**wrong)


def test_the_bar_shows_the_loss_of_this_step_and_moves_while_it_evaluates(run, monkeypatch):
    with terminal(monkeypatch) as (_, text):
        callback = Progress(refresh_per_second=50)
        run.fire("on_train_begin", callback)
        assert callback._bar is not None
        log_line(run, callback, 1)  # the last training line for a while
        callback._bar.refresh()
        for step, total in ((2, 8.0), (3, 6.0)):
            run.state.step, run.trainer.loss = step, StepLoss(torch.tensor(total), 4, 4)
            run.fire("on_step_end", callback)
            callback._bar.refresh()
        run.trainer.evaluating = 7
        callback._bar.refresh()
        run.trainer.evaluating = 0
        run.fire("on_train_end", callback)
        callback.close()
        shown = ESCAPES.sub("", text())
    assert "loss 2.5000" in shown and "loss 2.0000" in shown and "loss 1.5000" in shown
    assert "evaluating, batch 7" in shown


def test_a_spinner_turns_through_the_silent_start_and_leaves_the_terminal_whole(monkeypatch):
    logger = logging.getLogger("test_spinner")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with terminal(monkeypatch) as (stream, text):
        handler = Terminal()
        logger.addHandler(handler)
        with spinner.spinning("reading the recipe"):
            logger.info("a record above it")
            spinner.say("preparing data")
            spinner._shown[0]._live.refresh()
            with spinner.spinning("a second one"):
                pass
            assert sys.stderr is stream, "stopped, for whoever draws next"
            spinner.say("nothing any more")
        logger.info("a record after it")
        logger.removeHandler(handler)
        shown = ESCAPES.sub("", text())
    assert "reading the recipe" in shown and "preparing data" in shown and "nothing any more" not in shown
    assert "a record above it\r\n" in shown and shown.endswith("a record after it\r\n")


def test_in_a_file_there_is_no_spinner(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with spinner.spinning("reading the recipe"):
        spinner.say("preparing data")
        assert not spinner._shown
    assert sys.stderr.getvalue() == ""
