"""Decode audio to one channel at the sampling rate that a model needs, and read the lengths of audio clips."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import Problem, UserError

EXTRA = "pip install 'trireme-train[audio]'"


def waveform(stored: Any, rate: int) -> np.ndarray:
    """The audio in stored bytes, at a path, or in samples with their rate: float32 [samples], mean of its channels.

    Args:
        rate: samples per second of the result; an audio clip with another one is resampled.

    Raises:
        ValueError: it is no audio.
        UserError: a package is missing.
    """
    samples, own = decoded(stored)
    return np.ascontiguousarray(samples if own == rate else _resampled(samples, own, rate), np.float32)


def decoded(stored: Any) -> tuple[np.ndarray, int]:
    """The audio in stored bytes, at a path, or in samples with their rate, as ``waveform`` reads it: float32 [samples],
    and samples per second.

    Raises:
        ValueError: it is no audio.
        UserError: a package is missing.
    """
    if stored is None:
        raise ValueError("it has no audio")
    if isinstance(stored, dict) and stored.get("array") is not None:
        samples, own = _array(stored["array"]), int(stored.get("sampling_rate") or 0)
    else:
        samples, own = _read(stored)
    samples = samples.mean(1) if samples.ndim == 2 else samples
    if not len(samples):
        raise ValueError("its audio is empty")
    if own <= 0:
        raise ValueError(f"its audio has the sampling rate {own}")
    if not np.isfinite(samples).all():
        raise ValueError("its audio holds numbers that are not finite")
    return samples, own


def seconds(clips: Sequence[Any]) -> list[float]:
    """Lengths of stored audio clips, read from their headers; files that are no audio clips are left out."""
    found = []
    for stored in clips:
        if isinstance(stored, dict) and "array" in stored:
            found += [len(stored["array"]) / rate] if (rate := float(stored.get("sampling_rate") or 0)) > 0 else []
            continue
        with suppress(ValueError, OSError, RuntimeError):  # refused when it is read; soundfile's own is a RuntimeError
            found.append(float(_soundfile().info(_file(stored)).duration))
    return found


def _array(values: Any) -> np.ndarray:
    try:
        samples = np.asarray(values, np.float32)
    except (TypeError, ValueError):  # lists of several lengths, or texts
        raise ValueError("its audio is an array of something else than numbers") from None
    if samples.ndim not in (1, 2):
        raise ValueError(f"its audio is an array with {samples.ndim} axes, not [samples] or [samples, channels]")
    return samples


def _read(stored: Any) -> tuple[np.ndarray, int]:
    soundfile, file = _soundfile(), _file(stored)
    try:
        return soundfile.read(file, dtype="float32")
    except (OSError, RuntimeError) as error:  # soundfile's own error is a RuntimeError
        # Of bytes the library names an address in memory, and then the reason.
        reason = str(error).rpartition(": ")[2]
        if isinstance(file, str | Path):
            # libsndfile says "System error." of a missing file, and of an unknown format that there is no file.
            unknown = "it is of no format that libsndfile reads" if "does not exist" in reason else reason
            reason = unknown if Path(file).is_file() else f"there is no file {file}"
        raise ValueError(f"its audio cannot be read: {reason}") from None


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError:
        raise UserError(Problem("data", "needs soundfile to read audio, but it is not installed", EXTRA)) from None
    return soundfile


def _file(stored: Any) -> Any:
    if isinstance(stored, dict):
        if stored.get("bytes") is None and stored.get("path") is None:
            raise ValueError(f"its audio has neither bytes nor a path; it has {', '.join(stored) or 'nothing'}")
        return io.BytesIO(stored["bytes"]) if stored.get("bytes") is not None else Path(stored["path"])
    if isinstance(stored, bytes):
        return io.BytesIO(stored)
    if not isinstance(stored, str):
        raise ValueError(f"its audio is a {type(stored).__name__}; give a file, or its bytes")
    return stored


def _resampled(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    try:
        import soxr
    except ImportError:
        raise UserError(Problem("data", "needs soxr to resample audio, but it is not installed", EXTRA)) from None
    return soxr.resample(samples, own, rate)
