"""Tests that mistakes in custom samples, data sources and tasks are reported with the rule that they break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.own_code import EXAMPLES, fresh_modules
from helpers.recipes import recipe_of
from trireme.errors import ComponentFailed, UserError
from trireme.launch.cli import main
from trireme.launch.compose import compose
from trireme.trainer.build import train
from trireme.trainer.predict_only import predict

BROKEN = """
import random
import numpy as np
import torch
from mine.words import CodeLines, TaggedLines, WordKinds

class NoColumns(TaggedLines):
    columns = ["words"]

class NoSample(TaggedLines):
    def sample(self): ...

class NoGiven(TaggedLines):
    def __init__(self): ...

class NotSamples:
    columns = {"words": True}

class NoFacts(TaggedLines):
    def __init__(self, given):
        super().__init__(given)
        self.facts = ["name"]

class NoProcessor(TaggedLines):
    def __init__(self, given):
        super().__init__(given)
        self.processor = {"tokenizer": 1}

class Random(TaggedLines):
    def sample(self, row):
        found = super().sample(row)
        return {**found, "labels": np.where(np.random.rand(len(found["labels"])) < 0.5, -100, found["labels"])}

class ListSample(TaggedLines):
    def sample(self, row):
        return list(super().sample(row).values())

class OwnIndex(TaggedLines):
    def sample(self, row):
        return {**super().sample(row), "index": 3}

class BadRow(TaggedLines):
    def sample(self, row):
        raise ValueError("it is too dull")

class Raises(TaggedLines):
    def sample(self, row):
        return row["nothing"]

class TooHigh(TaggedLines):
    def sample(self, row):
        found = super().sample(row)
        return {**found, "labels": np.where(found["labels"] == 4, 5, found["labels"])}

class Negative(TaggedLines):
    def sample(self, row):
        found = super().sample(row)
        return {**found, "labels": np.where(found["labels"] == 4, -1, found["labels"])}

class UnknownTokens(TaggedLines):
    def sample(self, row):
        found = super().sample(row)
        return {**found, "input_ids": found["input_ids"] + 9999}

class Task(WordKinds): ...

class FewRecords(WordKinds):
    def records(self, outputs, targets):
        return {"found": super().records(outputs, targets)["found"][:1]}

class Arrays(WordKinds):
    def records(self, outputs, targets):
        return {"found": [np.zeros(2) for _ in targets["labels"]]}

class NoRecords(WordKinds):
    def records(self, outputs, targets):
        return targets["labels"]

class TextPrediction(WordKinds):
    def prediction(self, record, facts, tokenizer):
        return "name"

class TensorPrediction(WordKinds):
    def prediction(self, record, facts, tokenizer):
        return {"found": torch.tensor(record["found"])}

class ListMetrics(WordKinds):
    def record_metrics(self, records):
        return [0.5]

class RaisingMetrics(WordKinds):
    def record_metrics(self, records):
        return {"lines": 1 / 0}

class MeanEvaluation(WordKinds):
    def evaluate(self, outputs, targets):
        sums = super().evaluate(outputs, targets)
        return {**sums, "loss": sums["loss"] / sums["table"].sum()}

class PerSample(WordKinds):
    def evaluate(self, outputs, targets):
        self.calls = getattr(self, "calls", 0) + 1
        return {**super().evaluate(outputs, targets), "more": torch.zeros(1 + self.calls)}

class BadHead(WordKinds):
    head = "tagging"

class NoSuchSamples(WordKinds):
    samples = "mine.broken.Nothing"

class NoPath(WordKinds):
    samples = TaggedLines

class NoSuchCollator(WordKinds):
    collator = "mine.broken.Nothing"

class RecordsWithoutArguments(WordKinds):
    def records(self, outputs): ...

class NoRecordMetrics(WordKinds):
    record_metrics = None

class NamesOnly(WordKinds):
    metric_names = ("accuracy",)

class NoRows:
    def fingerprint(self):
        return "1"

class NoFingerprint:
    def rows(self, cache_dir): ...

class WithoutFolder(CodeLines):
    def rows(self): ...

class Texts(CodeLines):
    def rows(self, cache_dir):
        return ["a", "b"]

class Uneven(CodeLines):
    def rows(self, cache_dir):
        yield {"words": ["a"], "kinds": ["name"]}
        yield {"words": ["b"]}

class Empty(CodeLines):
    def rows(self, cache_dir):
        return []

class Other(CodeLines):
    def rows(self, cache_dir):
        return [{"tokens": ["a"], "kinds": ["name"]}]

class Fails(CodeLines):
    def rows(self, cache_dir):
        yield {"words": ["a"], "kinds": ["name"]}
        {}["gone"]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TRIREME_CACHE", str(tmp_path / "cache"))
    path = Path(EXAMPLES["words"].write(tmp_path))
    (tmp_path / "mine" / "broken.py").write_text(BROKEN)
    with fresh_modules():
        yield path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task._target_=mine.broken.BadHead", "names the head tagging, which no model has"),
        ("task._target_=mine.broken.NoSuchSamples", "names samples that cannot be imported"),
        ("task._target_=mine.broken.NoPath", "which is not a dotted path of a class"),
        ("task._target_=mine.broken.NoSuchCollator", "names a collator that cannot be imported"),
        ("task._target_=mine.broken.RecordsWithoutArguments", "write def records(self, outputs, targets)"),
        ("task._target_=mine.broken.NoRecordMetrics", "has scores_records = True, but no record_metrics"),
        ("task._target_=mine.broken.NamesOnly", "which are not names with loss among them"),
        ("data.source._target_=mine.broken.NoRows", "has no method rows"),
        ("data.source._target_=mine.broken.NoFingerprint", "has no method fingerprint"),
        ("data.source._target_=mine.broken.WithoutFolder", "that cannot be called as rows(cache_dir)"),
    ],
)
def test_a_check_finds_wrong_tasks_and_sources(
    recipe: Path, override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), override]) == 2
    message = capsys.readouterr().err
    assert words in message and "  fix: " in message, message


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ("NoColumns", "has columns = ['words']; name them as"),
        ("NoSample", "has sample(self), which is called as sample(self, row)"),
        ("NoGiven", "which is called as __init__(self, given)"),
        ("NotSamples", "is not a class that derives from trireme.trainer.data.samples.Samples"),
    ],
)
def test_samples_that_a_check_refuses(
    recipe: Path, samples: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _name_samples(recipe, samples)
    assert main(["check", str(recipe), "task._target_=mine.broken.Task"]) == 2
    message = capsys.readouterr().err
    assert words in message and f"mine.broken.{samples}" in message and "Samples have columns" in message


def _name_samples(recipe: Path, samples: str) -> None:
    file = recipe.parent / "mine" / "broken.py"
    file.write_text(
        BROKEN.replace("class Task(WordKinds): ...", f"class Task(WordKinds):\n    samples = 'mine.broken.{samples}'")
    )


def _run(recipe: Path, *overrides: str) -> str:
    composed = compose(str(recipe), [])  # so that the folder of the recipe is searched
    assert not composed.problems
    few = ["trainer.max_steps=1", "trainer.eval_samples=24", "trainer.micro_batch_size=8"]
    made = recipe_of(recipe, recipe.parent / "run", *few, *overrides)
    with pytest.raises((UserError, ComponentFailed)) as caught:
        train(made)
        predict(made, str(recipe.parent / "out.jsonl"), limit=3)
    return str(caught.value)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ("NoFacts", "has facts that are list, not Facts"),
        ("NoProcessor", "has a processor (dict) without save_pretrained(folder)"),
        ("Random", "gives another labels when sample(row) is called again; draw in the collator"),
        ("ListSample", "gives list by sample(row), not a dict of arrays and numbers"),
        ("OwnIndex", "gives index by sample(row), names that the engine sets"),
        ("BadRow", "gives a row that is not usable: it is too dull"),
        ("Raises", "mine.broken.Raises raises KeyError: 'nothing' in sample"),
        ("TooHigh", "mine.broken.TooHigh\n  gives the label 5, but labels are numbered from 0, and there are 5: name,"),
        ("Negative", "gives the label -1, but labels are numbered from 0"),
        ("UnknownTokens", "but the model has 512 embeddings"),
    ],
)
def test_samples_that_break_their_contract_in_a_run(recipe: Path, samples: str, words: str) -> None:
    _name_samples(recipe, samples)
    said = _run(recipe, "task._target_=mine.broken.Task")
    assert words in said.replace("collator = '", "").replace("'\n", "\n"), said


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("FewRecords", "FewRecords.records returns a dict of found: a list, not 8 rows for 8 samples"),
        ("Arrays", "Arrays.records returns what a file cannot hold"),
        ("NoRecords", "NoRecords.records returns a tensor of shape (8,"),
        ("TextPrediction", "TextPrediction.prediction returns a str, not a dict by name"),
        ("TensorPrediction", "TensorPrediction.prediction returns what a file cannot hold"),
        ("ListMetrics", "ListMetrics.record_metrics returns a list, not a dict of numbers"),
        ("RaisingMetrics", "RaisingMetrics raises ZeroDivisionError: division by zero in record_metrics"),
        ("MeanEvaluation", "MeanEvaluation.evaluate returns a mean: the loss of two copies of a sample is that of one"),
        ("PerSample", "not sums like those of the first micro-batch"),
    ],
)
def test_tasks_that_break_their_contract_in_a_run(recipe: Path, task: str, words: str) -> None:
    assert words in (said := _run(recipe, f"task._target_=mine.broken.{task}")), said


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Texts", "gives str as row 0, not a mapping of columns"),
        ("Uneven", "gives row 1 with the columns words, but the first row has kinds, words"),
        ("Empty", "gives no rows"),
        ("Other", "gives no column words, which the task needs as words; columns there: tokens, kinds"),
        ("Fails", "mine.broken.Fails raises KeyError: 'gone' in rows"),
    ],
)
def test_sources_of_rows_that_break_their_contract(recipe: Path, source: str, words: str) -> None:
    assert words in (said := _run(recipe, f"data.source._target_=mine.broken.{source}")), said


def test_targets_without_labels_need_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES["series"]
    path = example._replace(code=example.code.replace("def count(", "def number(")).write(tmp_path)
    with fresh_modules():
        assert main(["train", path, f"run.dir={tmp_path / 'run'}"]) == 2
    assert "Forecast has targets without labels (future)" in capsys.readouterr().err


def test_two_sources_of_rows_do_not_mix(recipe: Path) -> None:
    made = recipe_of(
        recipe,
        recipe.parent / "run",
        "data.eval_source={_target_: mine.words.CodeLines, package: json}",
        "data.source.package=email",
        "trainer.max_steps=1",
    )
    train(made)
    predict(made, str(recipe.parent / "out.jsonl"))
    rows = (recipe.parent / "out.jsonl").read_text()
    assert "JSONDecodeError" in rows and "feedparser" not in rows
