"""Tests of a run's HTML report in a real browser: curves, zooming, comparisons, small screens, and runs that have not
ended.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.browser import PROGRAM, Page, browser
from helpers.run_folders import RECIPE, STARTED, journal, lines, write_run
from trireme.launch.report_view import report
from trireme.trainer.run_report.page import Report, write_report
from trireme.trainer.run_report.run_files import read_run

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no browser: apt-get install chromium-headless-shell")
POINTS = """[...document.querySelectorAll('.chart')[%d].querySelectorAll('path.line')].map(one =>
  one.getAttribute('d').split(/[ML]/).slice(1).map(pair => pair.split(' ').map(Number)))"""
LABELS = """[...document.querySelectorAll('.chart')[%d].querySelectorAll('text')].map(one =>
  [one.textContent, Number(one.getAttribute('x')), Number(one.getAttribute('y'))])"""
FAINT = """(() => {
  const channel = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(one => channel(one / (text.includes('srgb') ? 1 : 255)));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll('h1, h2, td, p, dt, dd, .chip, summary, figcaption, label')].filter(one => {
    let under = one;
    while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
    const colours = [getComputedStyle(one).color, getComputedStyle(under).backgroundColor].map(light);
    return (Math.max(...colours) + 0.05) / (Math.min(...colours) + 0.05) < 4.5;
  }).map(one => one.outerHTML.slice(0, 80));
})()"""
"""Texts whose contrast is below that of level AA of WCAG 2."""
KEEP = os.environ.get("TRIREME_SCREENSHOTS")
"""Folder for screenshots of the pages, to be looked at by people; unset keeps none."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(shared: Page) -> Page:
    shared.requests.clear()
    shared.errors.clear()
    return shared


def _write(folder: Path, *runs: Path, refresh: float | None = None) -> Path:
    file = folder / "page.html"
    write_report(Report([read_run(run) for run in runs], "galley", refresh), file)
    return file


def _keep(page: Page, name: str) -> None:
    if KEEP:
        page.screenshot(Path(KEEP, f"{name}.png"))


def _value(labels: list, y: float) -> float:
    """The value at a height, interpolated from the labels of the axis at the left."""
    axis = sorted((at - 4, float(text)) for text, x, at in labels if x < 45)
    (low, first), (high, last) = axis[0], axis[-1]
    return first + (y - low) / (high - low) * (last - first)


def test_curves_are_drawn_where_the_numbers_say(tmp_path: Path, page: Page) -> None:
    page.open(_write(tmp_path, write_run(tmp_path / "run")))
    assert page.errors == [] and len(page.requests) == 1 and page.requests[0].startswith("file:")
    loss, held_out = page.run(POINTS % 0)
    labels = page.run(LABELS % 0)
    assert len(loss) == 40 and len(held_out) == 4
    for step in (1, 20, 40):
        assert _value(labels, loss[step - 1][1]) == pytest.approx(2 + 4 * math.exp(-step / 30), abs=0.02)
    steps = [x for x, _ in loss]
    assert [b - a for a, b in pairwise(steps)] == pytest.approx([steps[1] - steps[0]] * 39, abs=0.2)
    assert held_out[0][0] == pytest.approx(steps[9], abs=0.2)
    assert "unigram entropy 5.5" in [text for text, _, _ in labels]
    _keep(page, "one_run")


def test_axes_scales_and_smoothing_change_the_curves(tmp_path: Path, page: Page) -> None:
    metrics = lines(60)
    for line in metrics:
        if "loss" in line:
            line["loss"] += 0.5 * (-1) ** line["step"]
    page.open(_write(tmp_path, write_run(tmp_path / "run", metrics)))

    def rough() -> float:
        heights = [y for _, y in page.run(f"{POINTS % 0}.at(-2)")]
        return sum(abs(a - 2 * b + c) for a, b, c in zip(heights, heights[1:], heights[2:], strict=False))

    before = rough()
    page.run("(smooth.value = 6, smooth.dispatchEvent(new Event('input')), 0)")
    assert rough() < before / 4
    page.run("(smooth.value = 0, smooth.dispatchEvent(new Event('input')), 0)")
    assert rough() == before
    page.run("document.querySelector('[data-axis=seconds]').click()")
    assert "6 s" in [text for text, _, _ in page.run(LABELS % 0)]
    page.run("document.querySelector('[data-axis=tokens]').click()")
    assert "2000" in [text for text, _, _ in page.run(LABELS % 0)]
    page.run("document.querySelector('[data-axis=step]').click()")
    page.run("(logx.click(), logy.click(), 0)")
    (rate,) = page.run(POINTS % 1)  # lr = 0.001 / step is a straight line on two logarithmic scales
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(rate) if b[0] - a[0] > 5]
    assert len(slopes) > 5 and slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.03)
    assert page.errors == []


def test_values_are_read_by_keyboard_and_mouse_and_a_range_is_zoomed(tmp_path: Path, page: Page) -> None:
    page.open(_write(tmp_path, write_run(tmp_path / "run")))
    page.run("document.querySelector('.chart svg').focus()")
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.press(key)
    told = page.run("document.querySelector('.chart .tip').innerText")
    assert "step 3" in told and f"{2 + 4 * math.exp(-0.1):.3f}"[:4] in told
    assert page.run("document.querySelectorAll('.over .cross').length") == page.run(
        "document.querySelectorAll('.chart').length"
    )
    page.press("Escape")
    assert page.run("document.querySelector('.chart .tip').hidden")
    box = page.run(
        "(({left, top, width}) => [left, top, width])(document.querySelector('.chart svg').getBoundingClientRect())"
    )
    left, middle, y = box[0] + 60, box[0] + box[2] / 2, box[1] + 100
    page.mouse("mouseMoved", left, y)
    page.mouse("mousePressed", left, y, held=True)
    page.mouse("mouseMoved", middle, y, held=True)
    page.mouse("mouseReleased", middle, y)
    assert max(int(text) for text, _, at in page.run(LABELS % 0) if text.isdigit() and at > 300) < 30
    page.run("whole.click()")
    assert max(int(text) for text, _, at in page.run(LABELS % 0) if text.isdigit() and at > 300) == 40
    assert page.errors == []


def test_runs_are_compared_and_their_details_chosen(tmp_path: Path, page: Page) -> None:
    runs = []
    for name, scale in (("one", 1.0), ("two", 1.5), ("three", 0.8)):
        metrics = [{**line, "loss": line["loss"] * scale} if "loss" in line else line for line in lines(40)]
        recipe = {**RECIPE, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001 * scale}}
        runs.append(write_run(tmp_path / name, metrics, recipe))
    page.open(_write(tmp_path, *runs))
    _keep(page, "three_runs")
    assert len(page.run(POINTS % 0)) == 6
    page.run("document.querySelectorAll('#legend button')[1].click()")
    assert len(page.run(POINTS % 0)) == 4
    shown = "[...document.querySelectorAll('.run')].filter(one => !one.hidden).map(one => one.dataset.run)"
    assert page.run(shown) == ["0"]
    page.run("(run.value = '2', run.dispatchEvent(new Event('change')), 0)")
    assert page.run(shown) == ["2"]
    page.open(tmp_path / "page.html")  # what was chosen stays when the page is loaded again
    assert page.run(shown) == ["2"] and len(page.run(POINTS % 0)) == 4
    assert page.errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_a_phone_and_can_be_read_in_light_and_dark(tmp_path: Path, page: Page, dark: bool) -> None:
    page.open(_write(tmp_path, write_run(tmp_path / "run")), width=360, dark=dark)
    _keep(page, "phone_dark" if dark else "phone")
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert (
        page.run("Math.max(...[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().right))")
        <= 360
    )
    assert page.run(FAINT) == []
    page.run("document.querySelector('h1').style.color = getComputedStyle(document.body).backgroundColor")
    assert page.run("document.querySelector('h1').outerHTML.slice(0, 80)") in page.run(
        FAINT
    )  # contrast of WCAG 2, level AA
    assert page.errors == []


def test_screen_readers_get_names_of_parts(tmp_path: Path, page: Page) -> None:
    page.open(_write(tmp_path, write_run(tmp_path / "run")))
    label = page.run("document.querySelector('.chart svg').getAttribute('aria-label')")
    assert label.startswith("loss by step. run: from 5.869 to 3.054") and "held out" in label
    unnamed = """[...document.querySelectorAll('svg, img, button, input, select, [role=region]')].filter(one => !(
      one.getAttribute('aria-label') || one.getAttribute('alt') !== null && one.alt || one.textContent.trim() ||
      one.labels && one.labels.length))"""
    assert page.run(f"{unnamed}.length") == 0


def test_without_script_the_tables_are_there(tmp_path: Path, page: Page) -> None:
    page.open(_write(tmp_path, write_run(tmp_path / "one"), write_run(tmp_path / "two")), script=False)
    assert "The curves need JavaScript" in page.text() and page.text().count("optimizer state") == 2


def test_a_page_of_a_run_that_goes_on_follows_it(tmp_path: Path, page: Page) -> None:
    """The page loads itself again, shows what was added, and keeps what was chosen, until the run has ended."""
    run = write_run(tmp_path / "run", lines(20), told=journal(STARTED))
    page.open(_write(tmp_path, run, refresh=0.4))
    page.run("(document.querySelector('[data-axis=tokens]').click(), document.querySelector('details').open = true, 0)")
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines(40) if line["step"] > 20)
    _write(tmp_path, run)
    loads = page.loads
    page.wait(lambda: page.loads > loads)
    assert len(page.run(POINTS % 0)[0]) == 40
    assert page.run("document.querySelector('[data-axis=tokens]').getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelector('details').open")
    loads = page.loads
    time.sleep(0.8)
    page.run("0")
    assert page.loads == loads  # the last page says that the run has ended
    assert page.errors == []


def test_a_run_that_has_not_logged_yet_is_waited_for(tmp_path: Path, page: Page) -> None:
    run = write_run(tmp_path / "run", [], told=journal(STARTED))
    report = Report([read_run(run, running=True, may_be_empty=True)], "run", refresh=60)
    write_report(report, tmp_path / "page.html")
    page.open(tmp_path / "page.html")
    assert "No step has been logged yet" in page.run("document.body.innerText") and page.errors == []


def test_a_notebook_shows_the_page_in_its_frame(tmp_path: Path, page: Page) -> None:
    """The frame has no origin, so its script may keep nothing in the session."""
    frame = report(write_run(tmp_path / "run"))._repr_html_()
    (tmp_path / "cell.html").write_text(f"<!doctype html><html><body>{frame}</body></html>")
    page.open(tmp_path / "cell.html", width=900)
    page.wait(lambda: "unigram entropy 5.5" in page.text(framed=True))  # drawn by the script
    _keep(page, "notebook")
    assert page.errors == []
