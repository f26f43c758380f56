"""The kinds of tokenizers that trireme can train: BPE, WordPiece, Unigram, words and characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
SPEECH = {"pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
WORDS = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
WORD = r"\n[^\S\n]*|\w+|[^\w\s]"
"""A line break with the indentation behind it, a run of letters and digits, or another mark."""
SPACED_WORD = r"\S+"
INNER = "##"
"""Prefix of WordPiece's pieces inside of a word."""
DIGITS = 3
"""Decimals that are kept of a piece's log-probability; those from the eleventh on differ from process to process."""
PENALTY = 1e-4
"""Difference between successive scores that the library gives to characters that occur in no piece."""
SENTINELS = 100
"""Tokens that stand for masked spans in T5's pre-training (https://arxiv.org/abs/1910.10683, section 3.1.4)."""


def untrained(
    kind: str, vocab_size: int, show: bool, before: Sequence[str] = ()
) -> tuple[Tokenizer, Any, dict[str, str]]:
    """A tokenizer without vocabulary, the trainer that gives it one, and its special tokens by their roles.

    Args:
        before: tokens that are numbered before all others but the special ones.
    """
    tokenizer, trainer, special = _KINDS[kind](vocab_size, show)
    if before:
        trainer.special_tokens = [*trainer.special_tokens, *before]
    return tokenizer, trainer, special


def inner_characters(tokenizer: Tokenizer) -> list[str]:
    """Tokens of single characters inside of words (``##a``). The library numbers them in an order that differs from
    process to process, and merges of equal counts follow it."""
    return sorted(token for token in tokenizer.get_vocab() if token.startswith(INNER) and len(token) == len(INNER) + 1)


def reproducible(kind: str, tokenizer: Tokenizer, special: int) -> Tokenizer:
    """Make a trained tokenizer equal to that of every other process that is trained on the same documents.

    Args:
        special: number of special tokens, which stand first.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    if kind == "wordpiece":  # inner characters were given as special tokens, which they are not
        content["added_tokens"] = content["added_tokens"][:special]
    elif kind == "unigram":  # sums of threads differ in their last digits, and tokens are sorted by them
        pieces = content["model"]["vocab"]
        content["model"]["vocab"] = [*pieces[:special], *_reproducible_scores(pieces[special:])]
    else:
        return tokenizer
    return Tokenizer.from_str(json.dumps(content))


def _reproducible_scores(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces with rounded scores, in their order.

    The library adds characters of its alphabet that no piece spells, in the order of a hash table, each ``PENALTY``
    above the one before. Here all of them get the lowest score.
    """
    lowest = min(score for _, score in pieces)
    added: set[str] = set()
    for token, score in sorted(pieces, key=lambda piece: piece[1]):
        step = (score - lowest) / PENALTY
        if len(token) == 1 and round(step) <= len(added) and abs(step - round(step)) < 1e-3:
            added.add(token)
    scores = ((token, round(lowest if token in added else score, DIGITS)) for token, score in pieces)
    return sorted(scores, key=lambda piece: (-piece[1], piece[0]))


def finished(kind: str, tokenizer: Tokenizer, special: dict[str, str]) -> PreTrainedTokenizerFast:
    """The trained tokenizer for transformers, with the special tokens that a text gets."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if kind == "wordpiece":
        first, last = special["cls_token"], special["sep_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
        )
    if kind == "unigram":
        end = special["eos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
    if kind == "characters":
        tokenizer.add_tokens([SPEECH["word_delimiter_token"]])  # texts of one word have none
    more = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if kind == "wordpiece" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, split_special_tokens=True, **special, **more
    )


def _bpe(vocab_size: int, show: bool) -> tuple[Tokenizer, Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show,
    )
    return tokenizer, trainer, {"bos_token": END, "eos_token": END, "pad_token": PAD}


def _wordpiece(vocab_size: int, show: bool) -> tuple[Tokenizer, Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=BERT["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(BERT.values()), show_progress=show)
    # Documents end with [SEP], as texts do.
    return tokenizer, trainer, {**BERT, "eos_token": BERT["sep_token"]}


def _unigram(vocab_size: int, show: bool) -> tuple[Tokenizer, Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    sentinels = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[*T5.values(), *sentinels],
        unk_token=T5["unk_token"],
        show_progress=show,
    )
    return tokenizer, trainer, {**T5, "additional_special_tokens": sentinels}  # type: ignore[dict-item]


def _words(vocab_size: int, show: bool, word: str = WORD) -> tuple[Tokenizer, Any, dict[str, str]]:
    """The most frequent words; others are unknown. Texts come back with single spaces between words.

    Args:
        word: a regular expression.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=WORDS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(word), "removed", invert=True)
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=list(WORDS.values()), show_progress=show)
    return tokenizer, trainer, dict(WORDS)


def _characters(vocab_size: int, show: bool) -> tuple[Tokenizer, Any, dict[str, str]]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=SPEECH["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), "|")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.CTC(pad_token=SPEECH["pad_token"], word_delimiter_token="|", cleanup=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=[SPEECH["pad_token"], SPEECH["unk_token"]], show_progress=show
    )
    return tokenizer, trainer, {"pad_token": SPEECH["pad_token"], "unk_token": SPEECH["unk_token"]}


_KINDS: dict[str, Callable[[int, bool], tuple[Tokenizer, Any, dict[str, str]]]] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "words": _words,
    "spaced_words": partial(_words, word=SPACED_WORD),
    "characters": _characters,
}
