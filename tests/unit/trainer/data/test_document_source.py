"""Tests of document sources that a user writes: what their methods may return, and how mistakes in them are shown."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trireme.errors import ComponentFailed, UserError
from trireme.trainer.data.document_source import DocumentSource, sources

TEXTS = ["one", "two"]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class with these methods, importable as ``mine_data.Own``; gives its component."""

    def make(**methods: Any) -> dict[str, Any]:
        module = types.ModuleType("mine_data")
        module.Own = type("Own", (), methods)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mine_data", module)
        return {"_target_": "mine_data.Own"}

    return make


def give(value: Any) -> Any:
    return lambda self, cache_dir=None: value


def load(component: dict[str, Any], tmp_path: Path) -> list[str]:
    (source,) = sources(component, None, streaming=False)
    return source.load(str(tmp_path / "scratch"))["text"][:]


def message(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def data_set(**columns: Any) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(columns)


@pytest.mark.parametrize(
    "found",
    [TEXTS, tuple(TEXTS), [{"text": "one", "id": 1}, {"text": "two", "id": 2}], data_set(text=TEXTS, id=[1, 2])],
    ids=["list", "tuple", "rows", "data set"],
)
def test_accepted_return_values_of_a_source(own: Any, tmp_path: Path, found: Any) -> None:
    component = own(load=give(found), stream=give(found), fingerprint=give("1"))
    assert load(component, tmp_path) == TEXTS
    source = DocumentSource(component)
    assert list(source.rows(iter(source.stream()))) == TEXTS
    stream = source.stream()
    next(iter(stream))
    assert isinstance(stream.state_dict(), dict)  # as a resume needs it


def test_a_generator_streams_again_and_again(own: Any) -> None:
    def stream(self: Any) -> Iterator[str]:
        yield from TEXTS

    source = DocumentSource(own(stream=stream, fingerprint=give("1")))
    for _ in range(2):
        assert list(source.rows(iter(source.stream()))) == TEXTS


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "gives NoneType by load"),
        ("text", "gives str by load"),
        ({"text": TEXTS}, "gives dict by load"),
        ([1], "gives a number by load, not text"),
        (["ab\ud800"], "gives a text by load that holds half of a surrogate pair, \\ud800, as character 3"),
        ([{"words": "a"}], "gives rows without text by load; columns there: words"),
        (data_set(words=TEXTS), "gives no column text by load; columns there: words"),
        (data_set(text=[1, 2]), "gives a column text of int64"),
    ],
    ids=str,
)
def test_wrong_return_values_of_a_source(own: Any, tmp_path: Path, found: Any, words: str) -> None:
    component = own(load=give(found), fingerprint=give("1"))
    text = message(lambda: load(component, tmp_path))
    assert text.startswith("data.source = 'mine_data.Own'") and words in text and "docs/extending.md" in text


def test_missing_methods_are_named_together_by_key(own: Any) -> None:
    component = own(load=lambda self: TEXTS)
    text = message(lambda: sources(component, component, streaming=False))
    for key in ("data.source", "data.eval_source"):
        assert f"{key} = 'mine_data.Own'\n  has a load() that cannot be called as load(cache_dir)" in text
        assert f"{key} = 'mine_data.Own'\n  has no method fingerprint" in text
    assert "has no method stream" in message(lambda: sources(component, None, streaming=True))
    wrong = DocumentSource(own(fingerprint=give(None)))
    assert "a fingerprint that is null, not a string" in message(wrong.fingerprint)


def test_sources_with_one_fingerprint_do_not_share_documents(own: Any) -> None:
    component = own(__init__=lambda self, kind: None, fingerprint=give("1"))
    prints = {DocumentSource(component | {"kind": kind}).fingerprint() for kind in ("a", "b")}
    assert len(prints) == 2


def test_problems_of_the_evaluation_source_name_it(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"messages": "a"}\n')
    component = {"_target_": "trireme.trainer.data.sources.Files", "paths": [str(tmp_path / "chat.jsonl")]}
    source = DocumentSource(component, "data.eval_source")
    for call in (lambda: source.load(str(tmp_path)), lambda: list(source.rows(iter(source.stream()))), source.look):
        text = message(call)
        assert text.startswith("data.eval_source.text_column = 'text'")
        assert "set data.eval_source.text_column=messages" in text and "data.source" not in text


def test_errors_of_own_code_say_where(own: Any, tmp_path: Path) -> None:
    def broken(self: Any, cache_dir: str) -> None:
        raise KeyError("mine")

    with pytest.raises(ComponentFailed) as caught:
        load(own(load=broken, fingerprint=give("1")), tmp_path)
    assert ".Own raises KeyError: 'mine' in load (" in str(caught.value)
