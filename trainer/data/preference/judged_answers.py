"""Make samples for KTO from texts: each answer labelled good or bad, together with an answer to another prompt.
Functions here also report how many answers are good, and refuse sets that KTO cannot learn from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import Problem, UserError
from .answer_encoder import SAME, AnswerEncoder, learnt_places
from .encoded_samples import encoded_sample, mapped, unusable
from .preference_form import say_the_same

if TYPE_CHECKING:
    from datasets import Dataset

    from .preference_rows import Pairs


def judged_samples(samples: Pairs, rows: Dataset) -> Dataset:
    """Each answer, beside the answer to the next other prompt: a function of the rows alone, so that neither the order
    of the samples nor a plan changes it."""
    from datasets import Dataset as Rows

    found = list(_answers(samples, rows))
    usable = [place for place, each in enumerate(found) if not each["reason"]]
    partners = partners_of([found[place]["prompt"] for place in usable])
    for at, place in enumerate(usable):
        found[place]["other"] = found[usable[partners[at]]]["completion"]
    whole = Rows.from_list([{**each, "other": each.get("other", "")} for each in found])
    return mapped(whole, _encode, {"encoder": samples.encoder}, samples.processes)


def _answers(samples: Pairs, rows: Dataset) -> Iterator[dict[str, Any]]:
    """The answers of all rows: prompt, answer and what stands beside them as JSON."""
    for number, row in enumerate(rows):
        try:
            answers = samples.answers(row)  # type: ignore[arg-type]
            if len(answers) > 1 and say_the_same(*(answer["completion"] for answer, _ in answers)):
                raise ValueError(SAME)
            for answer, good in answers:
                beside = {name: value for name, value in answer.items() if name not in ("prompt", "completion")}
                texts = [json.dumps(each) for each in (answer["prompt"], answer["completion"], beside)]
                parts = dict(zip(("prompt", "completion", "beside"), texts, strict=True))
                yield {**parts, "good": good, "row": number, "reason": ""}
        except ValueError as error:
            nothing = dict.fromkeys(("prompt", "completion", "beside"), "")
            yield {**nothing, "good": False, "row": number, "reason": str(error)}


def partners_of(prompts: list[str]) -> np.ndarray:
    """For each answer the number of the next one, in a circle, to another prompt; 0 if there is no other prompt."""
    partners = np.zeros(len(prompts), np.int64)
    nearest = 0
    for place in reversed(range(2 * len(prompts))):  # twice, so that the last ones find theirs at the beginning
        at, behind = place % len(prompts), (place + 1) % len(prompts)
        nearest = behind if prompts[behind] != prompts[at] else nearest
        partners[at] = nearest
    return partners


def _encode(row: Mapping[str, Any], _: int, encoder: AnswerEncoder) -> dict[str, Any]:
    if row["reason"]:
        return unusable(row["reason"], row["row"])
    prompt, completion, beside, other = (json.loads(row[name]) for name in ("prompt", "completion", "beside", "other"))
    try:
        own, another = (
            encoder.answer({**beside, "prompt": prompt, "completion": each}) for each in (completion, other)
        )
    except ValueError as error:
        return unusable(str(error), row["row"])
    return encoded_sample(own, another, row["row"], bool(row["good"]))


def one_sided(desirable: np.ndarray, batch: float) -> str:
    """A sentence on batches whose answers are all good, or all bad; empty if these are rare.

    Args:
        batch: answers of a step.
    """
    share = float(desirable.mean()) if len(desirable) else 0.5
    chance = share**batch + (1 - share) ** batch
    if chance < 0.05:
        return ""
    what = f"{chance:.0%} of the steps have answers of one label only"
    why = f"{share:.1%} of all are desirable, and a step has {batch:.3g}"
    return f"{what}: {why}; a larger trainer.global_batch_size mends that"


def refuse_one_prompt(encoded: Dataset, key: str) -> None:
    """Refuse samples that all answer the same prompt.

    Raises:
        UserError: they do.
    """
    prompts = set()
    for sample in encoded.select_columns(["first_ids", "first_labels"]):
        first = int(learnt_places(np.asarray(sample["first_labels"]))[0])  # type: ignore[index]
        prompts.add(tuple(sample["first_ids"][:first]))  # type: ignore[index]
        if len(prompts) > 1:
            return
    why = "gives answers to one prompt only, and KTO compares prompts with answers to others"
    raise UserError(Problem(key, why, "give rows with different prompts, or choose task=dpo"))


def balance(desirable: np.ndarray, key: str) -> list[str]:
    """A line on how many answers are desirable.

    Raises:
        UserError: all are, or none is.
    """
    good, bad = int(desirable.sum()), int((~desirable).sum())
    if len(desirable) and not (good and bad):
        why = f"calls {'all' if good else 'none'} of its {len(desirable)} answers desirable; KTO learns from both kinds"
        raise UserError(
            Problem(key, why, "give rows of both labels, or fine-tune on the good ones: task=causal_lm data=chat")
        )
    advice = ""
    if good and not 1 <= good / bad <= 4 / 3:
        weight = f"undesirable_weight={good / bad:.3g}" if good > bad else f"desirable_weight={bad / good:.3g}"
        advice = f"; the paper advises weights that balance them, such as task.{weight}"
    return [f"{good} answers are desirable, {bad} are not{advice}"]
