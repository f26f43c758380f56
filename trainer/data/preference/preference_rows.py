"""Convert preference data to samples of two texts each, with labels on the tokens of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ....errors import Problem, UserError
from ....models.facts import Facts
from ..base_collator import Sample
from ..chat.chat_config import KEY, ChatConfig
from ..chat.chat_tokenizer import chat_tokenizer, chat_vocabulary, texts_inside
from ..document_source import SOURCE
from ..packed_rows import Binned
from ..report.token_views import token_view
from ..report.views import Collated, Text, View
from ..samples import Given, MadeRows, Samples
from ..text_rows import text_processor
from .answer_encoder import PARTS, SIDES, AnswerEncoder
from .packed_pairs import PackedPairs
from .preference_form import Answer, answers_of, columns_problem

if TYPE_CHECKING:
    from datasets import Dataset


class Pairs(Samples):
    """A chosen and a rejected answer to one prompt."""

    columns: ClassVar[dict[str, bool]] = {
        "prompt": False,
        "input": False,
        "chosen": False,  # rows without one are not usable: see data.chat.unusable
        "rejected": False,
        "system": False,
        "tools": False,
        "functions": False,
        "documents": False,
        "template_args": False,
    }
    judged: ClassVar[bool] = False
    """Whether rows may hold single answers that are called good or bad."""
    shown_sides: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def __init__(self, given: Given, unusable: str | None = None, too_long: str | None = None) -> None:
        """
        Args:
            unusable, too_long: for plain texts (``data.chat=null``) what ``data.chat`` says of conversations: refuse
                or leave_out; cut, drop or refuse.
        """
        self.chat = given.config.chat
        self.unusable, self.too_long = _choices(self.chat, unusable, too_long)
        if problems := columns_problem(given.rows.column_names, SOURCE, self.judged):
            raise UserError(*problems)
        if self.chat is not None and self.chat.loss not in ("assistant", "completions"):
            fix = f"set {KEY}.loss=completions, or leave it out"
            raise UserError(
                Problem(
                    f"{KEY}.loss",
                    "has no effect: training on preferences always learns from the answers",
                    fix,
                    self.chat.loss,
                )
            )
        self.processor = self._tokenizer(given)
        self.length = self.block_size = given.config.block_size
        self.cache, self.processes = given.cache, given.config.num_proc
        self.encoder = AnswerEncoder(self.processor, self.chat)
        self.facts = Facts(chat_vocabulary(self.processor, self.chat))

    def answers(self, row: Mapping[str, Any]) -> list[tuple[Answer, bool]]:
        """The answers of a row, and whether each is called good.

        Raises:
            ValueError: it holds none.
        """
        return answers_of(row, self.judged)

    def made(self, rows: Dataset, name: str, key: str) -> MadeRows:
        from .prepare_preferences import made_preferences

        return made_preferences(self, rows, name, key)

    def packed(self, rows: Any, seed: int, shuffle: bool) -> Binned:
        return PackedPairs(rows, self.block_size, seed, shuffle)

    def sample(self, row: dict[str, Any]) -> Sample:
        found: Sample = {name: np.asarray(row[name], np.int64)[: self.block_size] for name in PARTS}
        return {**found, "desirable": bool(row["desirable"])}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        if "first_ids" not in row:
            return super().show(row)
        texts = {
            side: self.processor.decode(row[f"{name}_ids"]) for side, name in zip(self.shown_sides, SIDES, strict=False)
        }
        return super().show(texts)

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"tokens of the longer text": rows["length"], "tokens that are learnt": rows["learnt"]}

    def longest(self) -> dict[str, float | None]:
        return {"tokens of the longer text": self.length}

    def views(self, sample: Collated) -> dict[str, View]:
        """Each text in its row, its labels marked; of packed rows one after the other."""
        found: dict[str, View] = {}
        tokens, labels, texts = (np.atleast_2d(sample.inputs["input_ids"]), *map(np.atleast_2d, self._targets(sample)))
        there = np.atleast_2d(sample.targets["there"])
        for number in range(there.shape[1]):
            of = f", {number + 1} of {int(there[0].sum())}" if there[0].sum() > 1 else ""
            for row, side in enumerate(self.shown_sides[: len(tokens)]):
                if there[row, number]:
                    own = texts[row] == number
                    found[f"{side}{of}"] = token_view(self.processor, tokens[row][own], labels[row][own], shifted=True)
        return found

    def _targets(self, sample: Collated) -> tuple[np.ndarray, np.ndarray]:
        return sample.targets["labels"], sample.targets["texts"]

    def _tokenizer(self, given: Given) -> Any:
        def texts() -> Iterator[str]:
            return _texts(given.rows, self)

        if self.chat is not None:
            return chat_tokenizer(given, self.chat, texts)
        return text_processor(given, said=texts)


class Judged(Pairs):
    """An answer that is called good or bad, and the answer to another prompt, for KTO. Pairs become two answers."""

    columns: ClassVar[dict[str, bool]] = {
        "prompt": False,
        "input": False,
        "completion": False,
        "label": False,
        "chosen": False,
        "rejected": False,
        "system": False,
        "tools": False,
        "functions": False,
        "documents": False,
        "template_args": False,
    }
    judged: ClassVar[bool] = True
    shown_sides: ClassVar[tuple[str, ...]] = ("answer", "answer to another prompt")

    def views(self, sample: Collated) -> dict[str, View]:
        found = super().views(sample)
        called = np.atleast_2d(sample.targets["desirable"])[0]
        words = ["desirable" if good else "undesirable" for good in called[: len(found)]]
        return {**found, "label": Text(", ".join(words))}


def _choices(chat: ChatConfig | None, unusable: str | None, too_long: str | None) -> tuple[str, str]:
    """What happens with rows that are not usable, and with texts that are too long."""
    usual = (chat.unusable, chat.too_long) if chat is not None else ("refuse", "cut")
    given = {"unusable": (unusable, ("refuse", "leave_out")), "too_long": (too_long, ("cut", "drop", "refuse"))}
    for name, (value, known) in given.items():
        if value is not None and chat is not None:
            raise UserError(
                Problem(f"data.samples.{name}", "cannot be set beside data.chat", f"write {KEY}.{name}", value)
            )
        if value is not None and value not in known:
            raise UserError(Problem(f"data.samples.{name}", "is not known", f"write {' or '.join(known)}", value))
    return unusable or usual[0], too_long or usual[1]


def _texts(rows: Any, samples: Pairs) -> Iterator[str]:
    """The texts of the rows, to train a tokenizer on."""
    for row in rows:
        try:
            answers: Iterable[tuple[Answer, bool]] = samples.answers(row)
        except ValueError:  # reported when the row is encoded
            continue
        for answer, _ in answers:
            yield from texts_inside([answer["prompt"], answer["completion"], answer.get("tools")])
