"""Tests of HTML reports on runs and studies, without a browser: correct numbers, escaped texts, small size, no external
files, and damaged or missing input.
"""

from __future__ import annotations

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.command import refused, trireme_here
from helpers.run_folders import ENDED, MEASURED, RECIPE, STARTED, journal, lines, write_run
from trireme.launch.make_report import html_of
from trireme.launch.report_view import report
from trireme.trainer.run_report.curves import charts, curves
from trireme.trainer.run_report.page import Report, page
from trireme.trainer.run_report.run_files import RunFiles, read_run
from trireme.trainer.run_report.study import Study

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(2)>&amp; \u202eturned \x1b[31m'


class Elements(HTMLParser):
    """Names and attributes of all elements, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.text, self.inside, self.open = "", "", list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        self.inside = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data


def _of(metrics: list[dict[str, Any]]) -> RunFiles:
    return RunFiles(Path("run"), "run", metrics)


def _data(html: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert match
    return json.loads(match[1])


# -- curves ---------------------------------------------------------------------------------------------------------


def test_curves_hold_the_numbers_of_the_run() -> None:
    found = curves(_of(lines(40)), 1)
    assert found["x"]["step"] == list(range(1, 41))
    assert found["x"]["tokens"] == [64 * step for step in range(1, 41)]
    assert found["x"]["seconds"] == pytest.approx([0.1 * step for step in range(1, 41)])
    assert found["y"]["loss"] == pytest.approx([2 + 4 * math.exp(-step / 30) for step in range(1, 41)], rel=1e-4)
    assert found["eval"]["x"] == {"step": [10, 20, 30, 40], "tokens": [640, 1280, 1920, 2560], "seconds": [1, 2, 3, 4]}
    assert found["eval"]["y"]["eval_accuracy"] == [0.05, 0.1, 0.15, 0.2]
    titles = [chart["title"] for chart in charts([found])]
    assert titles[:4] == ["loss", "learning rate", "gradient norm", "tokens per second"]
    assert charts([found])[0] == {"train": "loss", "held_out": "eval_loss", "title": "loss"}


def test_training_time_leaves_out_what_lies_between_starts_and_goes_on_after_a_resume() -> None:
    """A resume logs step 5 again at another rate; the rate counts for the tokens since the line before."""
    metrics = [{"step": step, "loss": 1.0, "tokens": 100 * step, "tokens_per_second": 50.0} for step in (1, 2)]
    metrics.append({"step": 5, "loss": 1.0, "tokens": 500, "tokens_per_second": 300.0})
    assert curves(_of(metrics), 1)["x"]["seconds"] == [2, 4, 5]


def test_a_long_run_becomes_few_points_without_losing_a_spike_or_the_mean() -> None:
    metrics = lines(20_000)
    place = next(place for place, line in enumerate(metrics) if line["step"] == 7_777)
    metrics[place]["grad_norm"] = 1e6
    found = curves(_of(metrics), 1)
    assert len(found["x"]["step"]) == 600 and found["x"]["step"][-1] == 20_000
    assert max(found["high"]["grad_norm"]) == 1e6 and len(found["low"]["loss"]) == 600
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert sum(found["y"]["loss"]) / 600 == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    columns = (found[bound]["loss"] for bound in ("low", "y", "high"))
    assert all(low <= mean <= high for low, mean, high in zip(*columns, strict=True))
    assert len(page(Report([_of(metrics)], "long"))) < 250_000


def test_values_that_are_not_finite_are_gaps_and_the_first_one_is_told(tmp_path: Path) -> None:
    metrics = lines(30)
    for line in metrics:
        if line["step"] >= 25 and "loss" in line:
            line |= {"loss": "nan", "grad_norm": "inf"}
    run = read_run(write_run(tmp_path / "run", metrics))
    found = curves(run, 1)
    assert found["bad"] == 25 and found["y"]["loss"][24:] == [None] * 6 and found["y"]["loss"][23] is not None
    assert run.state == "diverged" and "diverged" in Elements(page(Report([run], "x"))).text


def test_rates_of_other_samples_than_tokens_have_their_own_axis() -> None:
    metrics = [{"step": 1, "loss": 1.0, "images": 8, "images_per_second": 4.0, "samples_per_second": 4.0}]
    found = curves(_of(metrics), 1)
    assert found["unit"] == "images" and found["x"]["tokens"] == [8] and found["x"]["seconds"] == [2]


# -- the page -------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_folder_holds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "galley")
    (run / "samples.txt").write_text("--- step 20\nold text\n\n--- step 40\ndef row():\n    pass\n\n")
    pieces = [{"text": "the oars ", "role": "ignored"}, {"text": "move", "role": "learnt", "hides": "mast"}]
    sample = {"title": "sample 0", "views": {"tokens": {"kind": "tokens", "pieces": pieces}}, "shapes": {"ids": "[2]"}}
    (run / "shown_samples.json").write_text(json.dumps({"step": 1, "samples": [sample]}))
    (run / "log.txt").write_text("2026-03-01 10:00:00,123 WARNING trireme.trainer: the mast creaks\nnot a line\n")
    html = page(Report([read_run(run)], "galley"))
    found = Elements(html)
    assert not found.open
    words = (
        *("held out", "news", "held out, wiki", "accuracy", "old text", "the mast creaks", "optimizer state"),
        *("8.01 KiB", "bookkeeping", "rank 1", "trieste", "resolved recipe", "torch.optim.AdamW", "done"),
    )
    assert [word for word in words if word not in found.text] == []
    assert '<span class="learnt">move</span><span class="hidden">[mast]</span>' in html
    assert ("rect", "B") in [(tag, about.get("class")) for tag, about in found.found]
    assert _data(html)["runs"][0]["references"] == {"unigram entropy": 5.5} and _data(html)["refresh"] is None
    assert len(html) < 70_000


@pytest.mark.parametrize("plots", ["plots", "pictures"])
def test_a_page_loads_nothing(plots: str, tmp_path: Path) -> None:
    """The plots of a study lie in ``plots``, or in ``pictures`` as in earlier versions."""
    study = _study(tmp_path / "study", 2)
    (study / plots).mkdir()
    (study / plots / "history.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>bad()</script></svg>')
    view = report(study)
    html = view.save(tmp_path / "page.html").read_text()
    found = Elements(html)
    sources = [about[key] for _, about in found.found for key in ("src", "href", "data") if about.get(key)]
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "bad()" not in html and not {"link", "iframe", "object", "base"} & {tag for tag, _ in found.found}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    assert "default-src 'none'" in html


def test_every_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    metrics = [{**line, f"eval_{EVIL}" if "eval_loss" in line else EVIL: 1.5} for line in lines(20)]
    recipe = {**RECIPE, EVIL: EVIL, "plan": {"name": EVIL}, "data": {"eval_sets": {EVIL: 1}}, "model": {"family": EVIL}}
    sample = {"title": EVIL, "shapes": {EVIL: EVIL}, "views": {
        EVIL: {"kind": "tokens", "pieces": [{"text": EVIL, "role": EVIL, "hides": EVIL}]},
        "image": {"kind": "image", "png": '"onerror=alert(3)', "width": 9, "about": EVIL}}}  # fmt: skip
    started = {**STARTED, "plan": EVIL, "device": EVIL, "time": EVIL, "references": {EVIL: 1.0},
               "machine": {EVIL: EVIL}, "versions": {EVIL: EVIL}}  # fmt: skip
    measured = {**MEASURED, "sent": {EVIL: 5}, "uncounted": [EVIL]}
    ended = {**ENDED, "how": EVIL, "reason": EVIL}
    folders = []
    for name in (EVIL.replace("/", "_"), "other"):
        run = write_run(tmp_path / name, metrics, recipe, journal(started, measured, ended))
        (run / "shown_samples.json").write_text(json.dumps({"step": 1, "samples": [sample]}))
        (run / "samples.txt").write_text(f"--- step 3\n{EVIL}\n")
        (run / "log.txt").write_text(f"2026-03-01 10:00:00,123 ERROR trireme: {EVIL}\n")
        recipe = {**recipe, EVIL: EVIL * 2}
        folders.append(run)
    html = page(Report([read_run(run) for run in folders], EVIL, studies=[Study(EVIL, [], {EVIL: "<svg/>"})]))
    found = Elements(html)
    assert not found.open
    assert [tag for tag, _ in found.found].count("script") == 2
    assert not [about for _, about in found.found if any(name.startswith("on") for name in about)]
    assert "\u202e" not in html and "\x1b" not in html
    assert found.text.count("alert(2)") > 20 and _data(html)["runs"][1]["name"] == "other"


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ((STARTED, ENDED), "done"),
        ((STARTED,), "killed"),
        ((STARTED, {**ENDED, "how": "failed"}), "failed"),
        ((STARTED, {**ENDED, "how": "left"}, STARTED), "killed"),
        ((STARTED, {**ENDED, "how": "left"}), "left"),
        (({**ENDED, "how": "left"},), "left"),
        ((), ""),
    ],
)
def test_the_state_of_a_run_is_that_of_its_last_start(tmp_path: Path, told: tuple, state: str) -> None:
    run = write_run(tmp_path / "run", told=journal(*told))
    assert read_run(run).state == state
    assert read_run(run, running=True).state == ("running" if state in ("killed", "") else state)


def test_a_run_on_another_machine_goes_on_as_long_as_it_writes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", told=journal({**STARTED, "machine": {"host": "an-other-machine"}}))
    assert read_run(run).state == "running"
    os.utime(run / "metrics.jsonl", (0, 0))
    assert read_run(run).state == "killed"


def test_starts_tell_restarts_rollbacks_and_kills(tmp_path: Path) -> None:
    told = journal(
        *(STARTED, {"event": "saved", "step": 10, "name": "step_00000010"}),
        *({**STARTED, "step": 10, "attempt": 1}, {"event": "back", "step": 10, "left": 17}),
        {**ENDED, "step": 20, "how": "failed", "reason": "RuntimeError: the mast broke"},
    )
    found = Elements(page(Report([read_run(write_run(tmp_path / "run", told=told))], "run"))).text
    words = (
        "ended without a message",
        "(restarted)",
        "went back to step 10",
        "from step 17",
        "the mast broke",
        "failed",
    )
    assert [word for word in words if word not in found] == []


def test_damaged_parts_are_left_out(tmp_path: Path) -> None:
    """A folder may be half copied; only the readable lines of the metrics are needed."""
    run = write_run(tmp_path / "run")
    metrics = (run / "metrics.jsonl").read_bytes().splitlines()
    metrics[3], metrics[5] = b"\xff\x00{", b'{"step": "x", "loss": {"a": []}}'
    (run / "metrics.jsonl").write_bytes(b"\n".join(metrics) + b'\n{"step": 41, "lo')
    for name in ("recipe.yaml", "summary.json", "shown_samples.json", "journal.jsonl"):
        (run / name).write_bytes(b"\xff\xfe: [" + b"[" * 5000)
    found = read_run(run)
    assert found.damaged == 2 and found.step == 40 and not found.recipe and not found.journal
    assert "2 damaged lines" in Elements(page(Report([found], "run"))).text
    odd = {
        **{"event": "measured", "step": 2, "planned": [1], "memory": {"parameters": "x"}, "sent": 7},
        "timeline": [{"rank": 0, "actions": [["F"], 3]}, 5],
    }
    (run / "journal.jsonl").write_text(
        journal({**STARTED, "machine": 5, "references": []}, odd, {"event": "ended", "step": 1})
    )
    views = [{"views": {"a": 3}}, {"views": [1]}, 7, {"views": {"p": {"kind": "image"}}}]
    (run / "shown_samples.json").write_text(json.dumps({"samples": views}))
    assert not Elements(page(Report([read_run(run)], "run"))).open


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/one"))
    write_run(Path("runs/two"), recipe={**RECIPE, "optimizer": {"_target_": "mine.Lion"}})
    done = trireme_here(capsys, "report", "runs/one")
    assert done.returncode == 0 and done.stdout.strip() == "runs/one/report.html"
    assert trireme_here(capsys, "report", "runs/one", "runs/two").stdout.strip() == "report.html"
    both = Elements(Path("report.html").read_text())
    assert "optimizer._target_" in both.text and "mine.Lion" in both.text
    assert "trainer.max_steps" not in both.text.split("Details of")[0]
    assert trireme_here(capsys, "report", "runs", "--out", "new/all.html").returncode == 0
    assert "<title>runs</title>" in Path("new/all.html").read_text()
    ended = trireme_here(capsys, "report", "runs/one", "--watch", "--every", "0.5")
    assert ended.returncode == 0 and "no run goes on: the page is written once" in ended.stderr
    refused(trireme_here(capsys, "report", "runs/one", "--every", "3"), "--every", "add --watch")


def test_bad_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def report_of(folder: Path, *options: str) -> Any:
        return trireme_here(capsys, "report", str(folder), *options)

    refused(report_of(tmp_path / "nowhere"), "RUN", "is not a folder", "fix:")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("hello")
    refused(report_of(tmp_path / "other"), "holds no run", "fix:")
    empty = write_run(tmp_path / "empty", metrics=[])
    refused(report_of(empty), "has never logged a step", "log.txt")
    (empty / "metrics.jsonl").write_bytes(b"\x00\x01\x02\n" * 40)
    refused(report_of(empty), "metrics.jsonl", "none of its 40 lines")
    whole = write_run(tmp_path / "whole")
    (tmp_path / "file").write_text("")
    refused(report_of(whole, "--out", str(tmp_path / "file" / "page.html")), "--out", "cannot be written")
    for folder in (".", "/", "..", str(tmp_path)):
        refused(report_of(whole, "--out", folder), "--out", "is a folder")
    recipe, blank = tmp_path / "mine.yaml", tmp_path / "blank.html"
    recipe.write_text("seed: 3\n")
    blank.touch()
    refused(report_of(whole, "--out", str(recipe)), "--out", "is not a page")
    assert recipe.read_text() == "seed: 3\n"
    assert [report_of(whole, "--out", str(blank)).returncode for _ in range(2)] == [0, 0]
    assert "Traceback" not in trireme_here(capsys, "report", str(tmp_path / "whole" / "metrics.jsonl")).stderr


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_run_that_cannot_be_read_is_left_out_beside_others(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "good")
    bad = write_run(tmp_path / "runs" / "bad")
    for name in ("metrics.jsonl", "journal.jsonl", "summary.json", "log.txt"):
        (bad / name).unlink(missing_ok=True)
        make(bad / name)
    refused(trireme_here(capsys, "report", str(bad)), "metrics.jsonl", "cannot be read: it is a", "fix:")
    done = trireme_here(capsys, "report", str(tmp_path / "runs"), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 0 and f"note: left out: {bad / 'metrics.jsonl'} cannot be read" in done.stderr
    assert "good" in (tmp_path / "page.html").read_text()


def test_a_notebook_shows_the_page_in_a_frame(tmp_path: Path) -> None:
    view = report(write_run(tmp_path / "run"))
    frame = Elements(view._repr_html_())
    assert [tag for tag, _ in frame.found] == ["iframe"]
    inner = frame.found[0][1]
    assert (
        inner["sandbox"] == "allow-scripts"
        and "tokens_per_second" in inner["srcdoc"]
        and not Elements(inner["srcdoc"]).open
    )


def test_a_study_of_many_runs_stays_small(tmp_path: Path) -> None:
    study = tmp_path / "study"
    for number in range(40):
        recipe = {**RECIPE, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001 * (number + 1)}}
        write_run(study / f"trial_{number:02d}", lines(200), recipe)
    (study / "plots").mkdir()
    html = report(study).save(tmp_path / "page.html").read_text()
    found = Elements(html)
    assert len(_data(html)["runs"]) == 40 and len(_data(html)["runs"][0]["x"]["step"]) == 100
    assert "0.04" in found.text and "optimizer.lr" in found.text and len(html) < 1_000_000


def test_a_study_shows_its_trials_though_it_has_a_recipe_itself(tmp_path: Path) -> None:
    study = tmp_path / "study"
    rows = [
        {"trial": 0, "eval_loss": 2.5, "values": {"optimizer.lr": 0.25, "plan": "ddp"}, "end": "done", "seconds": 3},
        {"trial": 1, "eval_loss": None, "values": {"optimizer.lr": 0.5}, "end": "pruned", "reason": EVIL},
        {"trial": EVIL, EVIL: EVIL, "values": [EVIL], "end": EVIL, "seconds": "x"},
    ]
    for number in (0, 1):
        write_run(study / f"trial_{number:04d}")
    (study / "recipe.yaml").write_text("trainer: {max_steps: 3}")
    (study / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{cut")
    html = report(study).save(tmp_path / "page.html").read_text()
    found = Elements(html)
    assert not found.open and len(_data(html)["runs"]) == 2
    assert [word for word in ("optimizer.lr", "0.2500", "2.5000", "pruned", "ddp") if word not in found.text] == []
    assert not [about for _, about in found.found if any(name.startswith("on") for name in about)]


def _study(folder: Path, trials: int) -> Path:
    for number in range(trials):
        write_run(folder / f"trial_{number:04d}")
    (folder / "recipe.yaml").write_text("trainer: {max_steps: 3}")
    (folder / "search.json").write_text("{}")
    return folder


def test_a_folder_of_studies_and_runs_shows_them_all(tmp_path: Path) -> None:
    """A run of the best recipe beside the trials, and a link to a trial, do not count as trials."""
    runs = tmp_path / "runs"
    one = _study(runs / "one", 2)
    row = {"trial": 0, "eval_loss": 2.5, "values": {"optimizer.lr": 0.25}, "end": "done"}
    (one / "trials.jsonl").write_text(json.dumps(row) + "\n")
    write_run(one / "best")
    (one / "best_trial").symlink_to("trial_0001")
    _study(runs / "two", 3)
    write_run(runs / "alone")
    write_run(runs / "sweep" / "lr=1")
    names = ["alone", "one/trial_0000", "one/trial_0001", "sweep/lr=1"]
    names += [f"two/trial_000{number}" for number in range(3)]
    html = report(runs).save(tmp_path / "page.html").read_text()
    assert [run["name"] for run in _data(html)["runs"]] == names
    assert "Trials of one" in Elements(html).text and "<title>runs</title>" in html
    beside = report(one, runs / "two").save(tmp_path / "page.html").read_text()
    assert [run["name"] for run in _data(beside)["runs"]] == [name for name in names if "trial" in name]
    assert "<title>one, two</title>" in beside and "Trials of one" in Elements(beside).text
    assert [run["name"] for run in _data(html_of([str(one)]))["runs"]] == ["trial_0000", "trial_0001"]
    assert "Trials" in Elements(html_of([str(one)])).text
    assert "Trials" not in Elements(html_of([str(one / "trial_0000")])).text


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("here", "there"):
        _study(tmp_path / place / "study", 2)
    html = html_of([str(tmp_path / place / "study") for place in ("here", "there")])
    names = [run["name"] for run in _data(html)["runs"]]
    assert names[0] == "here/study/trial_0000" and names[3] == "there/study/trial_0001"
