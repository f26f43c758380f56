"""Convert rows of text pairs to samples for encoder-decoder models: a text to read, and a text to generate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...errors import Problem, UserError
from ...models.facts import Facts
from .base_collator import Sample
from .samples import Given, Samples
from .text_rows import ended, text_processor, token_counts
from .text_values import vocabulary_of


class TextPairs(Samples):
    """A source text and its target: sentences of two languages, a text and its summary, a question and its answer.

    Args:
        prefix: put before every source, as in T5's "translate English to French: ".
        target_length: most tokens of a target; null takes ``data.block_size``.
        source_language: code of the sources' language, for tokenizers of several languages (NLLB, M2M100).
        target_language: code of the targets' language.
    """

    columns: ClassVar[dict[str, bool]] = {"source": True, "target": True}
    made_of: ClassVar[dict[str, str]] = {"input_ids": "source", "labels": "target"}

    def __init__(
        self,
        given: Given,
        prefix: str = "",
        target_length: int | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> None:
        self.processor = text_processor(given, "source", "target", beside=[prefix] if prefix else [])
        self.prefix, self.length = prefix, given.config.block_size
        self.target_length = target_length or self.length
        for name, language in (("src_lang", source_language), ("tgt_lang", target_language)):
            if language is None:
                continue
            if not hasattr(self.processor, name):
                option = "source_language" if name == "src_lang" else "target_language"
                why = "names a language, but the tokenizer knows no languages"
                raise UserError(Problem(f"data.samples.{option}", why, "leave it out", language))
            setattr(self.processor, name, language)
        self.facts = Facts(vocabulary_of(self.processor))

    def sample(self, row: dict[str, Any]) -> Sample:
        for name in ("source", "target"):
            if not row[name]:
                raise ValueError(f"it has no {name}")
        source = self.processor(
            self.prefix + row["source"], truncation=True, max_length=self.length, return_token_type_ids=False
        )
        target = ended(self._target, row["target"], self.processor, self.target_length)
        return {"input_ids": np.asarray(source["input_ids"], np.int64), "labels": target}

    def _target(self, text: str, **options: Any) -> Any:
        return self.processor(text_target=text, **options)

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        sources = [self.prefix + str(text or "") for text in rows["source"]]
        targets = self.processor(
            text_target=[str(text or "") for text in rows["target"]], truncation=False, verbose=False
        )
        return {
            "tokens of the source": token_counts(self.processor, sources),
            "tokens of the target": [len(ids) for ids in targets["input_ids"]],
        }

    def longest(self) -> dict[str, float | None]:
        return {"tokens of the source": self.length, "tokens of the target": self.target_length}
