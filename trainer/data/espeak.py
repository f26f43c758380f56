"""A speech data set that needs no download: sentences synthesised by espeak-ng, with their texts.

The texts are random sequences of words, spoken by several voices at several speeds and pitches. The data set depends
only on the arguments.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError, refuse
from .content_stamp import hash_json

if TYPE_CHECKING:
    from datasets import Dataset

PROGRAM = "espeak-ng"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class SynthesisedSpeech:
    """Source of rows with the columns ``audio``, ``text`` and ``label`` (the first word, for classification)."""

    words: list[str] = field(default_factory=lambda: list(DIGITS))
    """Words that texts are made of."""
    most_words: int = 3
    """Most words of a text; the least is one."""
    count: int = 1000
    """Number of texts."""
    voices: list[str] = field(default_factory=lambda: ["en-us", "en-gb", "en-gb-scotland"])
    """Voices of espeak-ng, by ``espeak-ng --voices``."""
    speeds: list[int] = field(default_factory=lambda: [130, 200])
    """Slowest and fastest speed, in words per minute."""
    pitches: list[int] = field(default_factory=lambda: [20, 80])
    """Lowest and highest pitch, from 0 to 99."""
    seed: int = 0
    """Seed of texts, voices, speeds and pitches."""

    def __post_init__(self) -> None:
        refuse([*self._flaws()])

    def _flaws(self) -> list[str]:
        found = []
        for name in ("words", "voices"):
            if not getattr(self, name):
                found.append(f"{name}=[] is empty; name at least one")
        for name in ("most_words", "count"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} is below 1; set it to at least 1")
        for name in ("speeds", "pitches"):
            values = getattr(self, name)
            if len(values) != 2 or values[0] > values[1]:
                found.append(f"{name}={values} is not a pair of a least and a greatest value; write two numbers")
        return found

    def rows(self, cache_dir: str) -> Dataset:
        from datasets import Dataset

        self.look()
        said = [self._text(number) for number in range(self.count)]
        with ThreadPoolExecutor() as pool:
            clips = list(pool.map(_synthesised, said))
        columns = {
            "audio": [{"bytes": clip, "path": None} for clip in clips],
            "text": [one["text"] for one in said],
            "label": [one["text"].split()[0] for one in said],
        }
        return Dataset.from_dict(columns)  # the type Audio of datasets needs torchcodec, and bytes do not

    def column_names(self) -> list[str]:
        return ["audio", "text"]

    def look(self) -> None:
        """Refuse to go on without espeak-ng."""
        if shutil.which(PROGRAM) is None:
            why = f"needs the program {PROGRAM}, which is not installed"
            raise UserError(Problem("data.source", why, "install it, on Debian by apt-get install espeak-ng"))

    def fingerprint(self) -> str:
        return hash_json(["espeak-ng", 1, asdict(self)])

    def _text(self, number: int) -> dict[str, Any]:
        """Text number ``number``, with its voice, speed and pitch."""
        from .base_collator import draws

        numbers = draws(self.seed, number, "speech")

        def one_of(values: Sequence[Any]) -> Any:
            return values[int(numbers.integers(len(values)))]

        words = [one_of(self.words) for _ in range(int(numbers.integers(1, self.most_words + 1)))]
        speed, pitch = (int(numbers.integers(low, high + 1)) for low, high in (self.speeds, self.pitches))
        return {"text": " ".join(words), "voice": one_of(self.voices), "speed": speed, "pitch": pitch}


def _synthesised(said: dict[str, Any]) -> bytes:
    """Synthesised speech for a text, as the bytes of a WAV file.

    Raises:
        UserError: espeak-ng fails.
    """
    arguments = ["-v", said["voice"], "-s", str(said["speed"]), "-p", str(said["pitch"]), "--stdout", "--stdin"]
    done = subprocess.run([PROGRAM, *arguments], input=said["text"].encode(), capture_output=True)
    if done.returncode or not done.stdout:
        why = f"{PROGRAM} cannot say {said['text']!r} with the voice {said['voice']}: {done.stderr.decode().strip()}"
        raise UserError(Problem("data.source", why, f"choose voices that `{PROGRAM} --voices` lists"))
    return done.stdout
