"""Tests of ``trireme data``: it shows the samples of the first training steps, also of the user's own classes, and
facts such as lengths and labels of each data set; its HTML page needs no other file.

Control characters in the data cannot change the terminal.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import ROOTS, refused, trireme_here
from helpers.ranks import run_ranks
from helpers.recipes import TINY, recipe_of
from trireme.trainer.build import train
from trireme.trainer.data_report import report_data

IMAGES, SPEECH = TINY.with_name("images.yaml"), TINY.with_name("speech.yaml")
MASKED = """
defaults:
  - /base
  - /model: bert_tiny
  - /data: files
  - override /task: masked_lm
  - _self_
model: {config: {vocab_size: 300}}
data:
  source: {paths: [docs.jsonl]}
  tokenizer: {kind: wordpiece, vocab_size: 300}
  block_size: 24
  packing: false
  held_out: 0.2
collator:
  _target_: trireme.trainer.data.masked_lm_collator.MaskedLMCollator
trainer: {max_steps: 1, global_batch_size: 8, micro_batch_size: 2, eval_at_end: false}
checkpoint: {at_end: false}
"""
LABELLED = """
defaults:
  - /base
  - /model: bert_tiny
  - /data: rows
  - override /task: sequence_classification
  - _self_
data:
  source: {paths: [rows.csv]}
  columns: {text: body, label: mood}
  tokenizer: {kind: wordpiece, vocab_size: 300}
  block_size: 12
  held_out: 0.25
  eval_sets:
    news: {_target_: trireme.trainer.data.row_files.RowFiles, paths: [news.csv]}
  test_source: {_target_: trireme.trainer.data.row_files.RowFiles, paths: [news.csv]}
trainer: {max_steps: 1, global_batch_size: 8, micro_batch_size: 4}
"""
EVIL = "<b>Piraeus</b> \x1b[31m\x07 \u202eturned\x9b2J"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipes and their data, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masked.yaml").write_text(MASKED)
    (tmp_path / "labelled.yaml").write_text(LABELLED)
    texts = [f"ship {number} sails to Piraeus with {7 * number} oars" + " row" * number for number in range(40)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[0]]))
    rows = [f'"{text}",{"glad" if number % 4 else "sad"}' for number, text in enumerate(texts)]
    (tmp_path / "rows.csv").write_text("\n".join(["body,mood", *rows, rows[0]]))
    (tmp_path / "news.csv").write_text(f'body,mood\n"{EVIL}",glad\n"all is well",sad\n"who knows",odd\n')
    return tmp_path


def _train(file: Path, run_dir: Path, *overrides: str) -> None:
    keep = f"callbacks.keep={{_target_: helpers.callbacks.KeepFirstBatch, path: {run_dir / 'batch'}}}"
    train(recipe_of(file, run_dir, keep, "trainer.max_steps=1", "trainer.eval_at_end=false", *overrides))


def _trained(run_dir: Path, ranks: int) -> dict[int, dict[str, Any]]:
    """Inputs and targets of the first step by the position of the sample."""
    found = {}
    for rank in range(ranks):
        for micro in torch.load(run_dir / f"batch.{rank}"):
            for row, position in enumerate(micro["samples"].tolist()):
                values = {**micro["inputs"], **{f"target {name}": value for name, value in micro["targets"].items()}}
                found[position] = {name: value[row].numpy() for name, value in values.items()}
    return found


needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.mark.parametrize(
    "file", [IMAGES, pytest.param(SPEECH, marks=needs_espeak), Path("masked.yaml")], ids=lambda file: file.stem
)
def test_what_is_shown_is_what_the_first_step_trains_on(folder: Path, file: Path) -> None:
    """Random crops, spans and masks are the same; masks also where two ranks share the step."""
    shown = report_data(recipe_of(file, folder / "look"), 8).samples
    assert len(shown) == 8 and not (folder / "look").exists()
    _train(file, folder / "one")
    every = [_trained(folder / "one", 1)]
    if file.stem == "masked":
        run_ranks(_train, 2, file, folder / "two", "plan=ddp")
        every.append(_trained(folder / "two", 2))
    for trained in every:
        for place, sample in enumerate(shown):
            collated = sample.collated
            assert collated.position == place
            values = {**collated.inputs, **{f"target {name}": value for name, value in collated.targets.items()}}
            assert set(values) == set(trained[place])
            assert all(np.array_equal(value, trained[place][name]) for name, value in values.items())


def test_samples_of_later_steps_follow(folder: Path) -> None:
    many = report_data(recipe_of(Path("masked.yaml"), folder / "look"), 13).samples
    assert [sample.collated.position for sample in many] == list(range(13))
    few = report_data(recipe_of(Path("masked.yaml"), folder / "look"), 3).samples
    for one, other in zip(few, many, strict=False):
        assert np.array_equal(one.collated.inputs["input_ids"], other.collated.inputs["input_ids"])


def test_sets_lengths_labels_and_what_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trireme_here(capsys, "data", "labelled.yaml", "--samples", "2")
    assert result.returncode == 0, result.stderr
    out = result.stdout
    rows = {name: int(count) for name, count in re.findall(r"^(\w+) +rows: (\d+)$", out, re.M)}
    assert list(rows) == ["train", "held_out", "news", "test"] and rows["news"] == rows["test"] == 3
    assert rows["train"] + rows["held_out"] == 40 and "left out: 1 repeated document(s)" in out
    train_part = out[: out.index("\nheld_out")]
    counts = {name: int(count) for name, count in re.findall(r"^  (glad|sad) +(\d+) ", train_part, re.M)}
    assert sum(counts.values()) == rows["train"] and counts["glad"] > counts["sad"] > 0 and "█" in train_part
    assert re.search(r"tokens +\d+ +\d+ +\d+ +\d+ +\d+ cut at 12", train_part)
    news = out[out.index("\nnews") : out.index("\ntest")]
    assert re.search(r"odd +1 ", news) and "1 without a label that the task knows" in news
    assert out.count("sample 0 of the run") == 1 and "text (input_ids)" in out and "label (labels)" in out
    assert "sample 2 of the run" not in out


def test_one_set_and_no_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trireme_here(capsys, "data", "labelled.yaml", "--set", "test", "--samples", "1")
    assert result.returncode == 0 and "sample 0 of test" in result.stdout and "train" not in result.stdout
    alone = ["data.held_out=0", "trainer.eval_at_end=false", "~data.eval_sets", "data.test_source=null"]
    result = trireme_here(capsys, "data", "labelled.yaml", "--samples", "0", *alone)
    assert result.returncode == 0 and "sample" not in result.stdout, result.stderr
    assert "train  rows: 40" in result.stdout and "held_out" not in result.stdout


def test_data_steer_neither_the_terminal_nor_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escapes, marks of direction and tags stand in a text, in the name of a label and in the name of a file."""
    (folder / "evil.csv").write_text(f'body,mood\n"{EVIL}","{EVIL}"\n"{EVIL} again",sad\n"and again",sad\n')
    given = ["data.source.paths=[evil.csv]", "~data.eval_sets", "data.test_source=null", "data.held_out=0"]
    given += ["data.tokenizer.kind=bpe", "data.block_size=64", "trainer.eval_at_end=false"]
    result = trireme_here(capsys, "data", "labelled.yaml", *given, "--samples", "3", "--html", "page.html")
    assert result.returncode == 0, result.stderr
    assert "␛[31m␇" in result.stdout and "\\u202eturned\\u009b2J" in result.stdout
    page = (folder / "page.html").read_text()
    for text in (result.stdout, page):
        assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert "<b>Piraeus" not in page and "&lt;b&gt;Piraeus&lt;/b&gt;" in page


class Page(HTMLParser):
    """The addresses and tags of an HTML page, and its unclosed tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("file", "kind", "media"),
    [
        (IMAGES, "image/png", ["img"]),
        pytest.param(SPEECH, "audio/wav", ["audio", "svg"], marks=needs_espeak),
    ],
    ids=["images", "speech"],
)
def test_the_page_holds_images_and_audio(
    folder: Path, capsys: pytest.CaptureFixture[str], file: Path, kind: str, media: list[str]
) -> None:
    result = trireme_here(capsys, "data", str(file), "--samples", "2", "--html", "page.html")
    assert result.returncode == 0, result.stderr
    text = (folder / "page.html").read_text()
    page = Page(text)
    assert not page.open and len(page.addresses) == 2
    assert all(address.startswith(f"data:{kind};base64,") for address in page.addresses)
    assert "http" not in text and "@import" not in text and "url(" not in text and "prefers-color-scheme" in text
    assert all(page.tags.count(tag) == 2 for tag in media)


def test_an_image_is_shown_as_it_was(folder: Path) -> None:
    """The image is neither mirrored nor cropped: it has the pixels that scikit-learn ships."""
    from sklearn.datasets import load_digits

    plain = ["collator.crop_padding=0", "collator.flip=0", "data.shuffle=false", "data.held_out=0", "seed=1"]
    plain += ["trainer.eval_at_end=false"]
    samples = report_data(recipe_of(IMAGES, folder / "look", *plain), 3).samples
    for sample, wanted in zip(samples, load_digits().images, strict=False):
        (image, label) = sample.views.values()
        assert np.abs(image.pixels / 255 - wanted / 16).max() < 0.04 and label.text in "0123456789"


def test_images_with_captions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (folder / "stamps").mkdir()
    for number, colour in enumerate(("red", "green", "blue", "black") * 5):
        Image.new("RGB", (40 + number, 30), colour).save(folder / "stamps" / f"{number}.png")
        (folder / "stamps" / f"{number}.txt").write_text(f"a {colour} stamp, number {number}")
    (folder / "stamps" / "0.png").write_bytes(b"no image")
    given = ["data.held_out=0", "trainer.eval_at_end=false", "trainer.eval_every=null"]
    given += [
        f"data.source.path={folder / 'stamps'}",
        "data.shuffle=false",
        "trainer.global_batch_size=4",
        "trainer.micro_batch_size=4",
    ]
    looked = trireme_here(capsys, "data", "multimodal/stamps_dual_encoder", *given, "--samples", "0")
    assert looked.returncode == 0 and looked.stdout.count("19 of 20 measured; 1 cannot be read") == 2, looked.stderr
    refused(trireme_here(capsys, "data", "multimodal/stamps_dual_encoder", *given), "its image is of no format")
    Image.new("RGB", (40, 30)).save(folder / "stamps" / "0.png")
    result = trireme_here(capsys, "data", "multimodal/stamps_dual_encoder", *given, "--html", "page.html")
    assert result.returncode == 0, result.stderr
    assert re.search(r"pixels wide +4\d ", result.stdout) and re.search(r"tokens +\d+ .* 0 cut at 32", result.stdout)
    assert "image (pixel_values)" in result.stdout and "text (input_ids)" in result.stdout
    assert len(re.findall(r"a (?:red|green|blue|black) stamp, number \d", result.stdout)) == 3
    assert (folder / "page.html").read_text().count("data:image/png") == 3


def test_a_file_that_is_no_page_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("a: 1\n")
    refused(trireme_here(capsys, "data", str(TINY), "--html", str(mine)), "--html", "is not a page")
    refused(trireme_here(capsys, "data", str(TINY), "--html", str(tmp_path)), "--html", "is a folder")
    assert mine.read_text() == "a: 1\n"


def test_a_stream_says_that_its_size_is_unknown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["data=files_streaming", f"data.source.paths=[{folder}/docs.jsonl]", "data.tokenizer.vocab_size=300"]
    given += ["data.block_size=16", "data.held_out=0.2"]
    result = trireme_here(capsys, "data", str(TINY), *given, "--samples", "1")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^train +documents: unknown +tokens: unknown$", result.stdout, re.M)
    assert "a stream: its end is not known" in result.stdout and "sample 0 of the run" in result.stdout


def test_a_mixture_is_shown_by_source(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = "trireme.trainer.data.sources.Files"
    (folder / "more.jsonl").write_text(
        "".join(json.dumps({"text": f"oar {number} " * 9}) + "\n" for number in range(30))
    )
    sources = [f"{name}: {{weight: {weight}, source: {{_target_: {files}, paths: [{name}.jsonl]}}}}"
               for name, weight in (("docs", 3), ("more", 1))]  # fmt: skip
    given = ["data.source=null", f"data.sources={{{', '.join(sources)}}}"]
    result = trireme_here(capsys, "data", "masked.yaml", *given, "--samples", "8", "--html", "page.html")
    assert result.returncode == 0, result.stderr
    train = result.stdout[: result.stdout.index("held_out")]
    assert re.search(r"^  docs +\d+ +75.0%", train, re.M) and re.search(r"^  more +\d+ +25.0%", train, re.M)
    assert result.stdout.count("data_source\n    docs") == 6 and result.stdout.count("data_source\n    more") == 2
    assert "75.0%" in (folder / "page.html").read_text()
    held = trireme_here(capsys, "data", "masked.yaml", *given, "--samples", "20", "--set", "held_out")
    numbers = [int(number) for number in re.findall(r"^sample (\d+) of held_out$", held.stdout, re.M)]
    assert numbers == list(range(len(numbers))) and len(numbers) > 8


OWN = """
import numpy as np
import torch
from dataclasses import dataclass
from trireme.parallel.micro_batch import MicroBatch
from trireme.trainer.data.base_collator import Collator, positions
from trireme.trainer.data.report.views import ImageView
from trireme.trainer.data.samples import Samples
from trireme.trainer.tasks.sequence_classification import SequenceClassification


class Points:
    def rows(self, cache_dir):
        return [{"x": float(number), "y": float(number % 3)} for number in range(20)]

    def fingerprint(self):
        return "points"


class Plain(Samples):
    columns = {"x": True, "y": True}

    def __init__(self, given):
        self.processor = None

    def sample(self, row):
        return {"at": np.array([row["x"], row["y"]], np.float32)}


class Drawn(Plain):
    def views(self, sample):
        return {"point": f"at {sample.inputs['at'][0]:g}", "map": np.zeros((4, 4), np.uint8)}

    def lengths(self, rows):
        return {"x": rows["x"]}


class Broken(Plain):
    def views(self, sample):
        raise RuntimeError("no ink")


@dataclass
class Stacked(Collator):
    micro_batch_size: int

    def micro_batch(self, samples):
        at = torch.from_numpy(np.stack([sample["at"] for sample in samples]))
        nested = {"at": at, "more": {"twice": [2 * at]}}
        return MicroBatch(nested, {"far": at.sum(1)}, positions(samples), len(samples))


class Listed(Plain):
    def views(self, sample):
        return ["no names"]


class Pale(Plain):
    def views(self, sample):
        return {"map": ImageView(np.zeros((4, 4), np.float32))}


class Task(SequenceClassification):
    samples = "own_points.Plain"
    collator = "own_points.Stacked"

    def count(self, targets):
        return len(targets["far"])


class DrawnTask(Task):
    samples = "own_points.Drawn"


class BrokenTask(Task):
    samples = "own_points.Broken"


class ListedTask(Task):
    samples = "own_points.Listed"


class PaleTask(Task):
    samples = "own_points.Pale"
"""
POINTS = """
defaults:
  - /base
  - /model: bert_tiny
  - _self_
task: {_target_: own_points.TASK}
data:
  source: {_target_: own_points.Points}
  tokenizer: {vocab_size: 300}
  block_size: 16
  held_out: 0
trainer: {max_steps: 1, global_batch_size: 4, micro_batch_size: 2, eval_at_end: false}
"""


def test_samples_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples of the user's own are shown as numbers, or by their ``views``; views that fail are one message."""
    (folder / "own_points.py").write_text(OWN)
    results = {}
    for task in ("Task", "DrawnTask", "BrokenTask", "ListedTask", "PaleTask"):
        (folder / "points.yaml").write_text(POINTS.replace("TASK", task))
        results[task] = trireme_here(capsys, "data", "points.yaml", "--samples", "2")
    plain, drawn, broken, listed, pale = results.values()
    assert plain.returncode == drawn.returncode == 0, plain.stderr + drawn.stderr
    assert "rows: 20" in plain.stdout and "Points" in plain.stdout
    for name in ("at", "more.twice.0", "far"):
        assert re.search(rf"^  {re.escape(name)}$", plain.stdout, re.M), plain.stdout
    assert "(float32 [2]," in plain.stdout
    assert re.search(r"^  point\n    at \d+", drawn.stdout, re.M) and re.search(r"^  x +0 +9 ", drawn.stdout, re.M)
    assert broken.returncode == 1 and "own_points.Broken raises RuntimeError: no ink in views" in broken.stderr
    refused(listed, "own_points.Listed gives list by views(sample), not a dict")
    assert pale.returncode == 1 and "pixels are float32 [4, 4]; give uint8" in pale.stderr


def test_wrong_arguments_give_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["labelled.yaml", "--set", "nwes"], ["--set = 'nwes'", "train, held_out, news, test"]),
        (["labelled.yaml", "data.columns.label=mod"], ["no column mod"]),
        (["labelled.yaml", "data.source.paths=[none.csv]"], ["data.source.paths"]),
        (["labelled.yaml", "data.blok_size=3"], ["did you mean data.block_size?"]),
        (["labelled.yaml", "--html", "labelled.yaml/page.html"], ["--html", "is a file, not a folder"]),
        (["nothing.yaml"], ["nothing.yaml"]),
    ):
        refused(trireme_here(capsys, "data", *arguments), *told)


def test_a_plan_for_many_machines_is_no_obstacle(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan=3d", "plan.tensor=8", "plan.pipeline=4", "--samples", "1"]
    result = trireme_here(capsys, "data", str(TINY), ROOTS, *given)
    assert result.returncode == 0 and "blocks of 32 tokens" in result.stdout, result.stderr


def test_no_engine_is_imported_and_nothing_is_written(folder: Path) -> None:
    arguments = ["data", str(TINY), ROOTS, "plan=zero3", "--samples", "1"]
    program = (
        f"import sys; from trireme.launch.cli import main; code = main({arguments!r}); import torch; "
        "print(code, {'deepspeed'} & set(sys.modules), torch.distributed.is_initialized())"
    )
    before = set(folder.iterdir())
    for _ in range(2):  # the first check of a model's configuration imports it
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert result.stdout.splitlines()[-1] == "0 set() False", result.stdout + result.stderr
    assert set(folder.iterdir()) == before


def test_colours_tell_what_is_learnt(folder: Path) -> None:
    """On a terminal with colours; each character of an image shows two pixels."""
    import io

    from rich.console import Console
    from trireme.launch.data_terminal import print_report

    def shown(file: Path) -> str:
        console = Console(force_terminal=True, color_system="truecolor", file=io.StringIO(), width=100, _environ={})
        print_report(report_data(recipe_of(file, folder / "look"), 1), console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    masked = shown(Path("masked.yaml"))
    assert re.search(r"\x1b\[1;32m ?\[MASK\]\x1b\[0m\x1b\[1;35m\[\w+\]\x1b\[0m", masked) and "\x1b[2m" in masked
    assert "«" not in masked and "\x1b[1;32mlearnt" in masked
    assert re.search(r"\x1b\[38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+m▀", shown(IMAGES))
