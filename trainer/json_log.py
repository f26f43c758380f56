"""Format log records as lines of JSON, for programs that collect logs of many machines (``run.log_format=json``)."""

from __future__ import annotations

import json
import logging
import math
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """One object per record: time (ISO 8601, UTC), level, logger, rank, message; and ``metrics`` of training lines and
    evaluations, ``error`` with the traceback of an exception."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "rank": self.rank,
            "message": record.getMessage(),
        }
        if metrics := getattr(record, "metrics", None):
            line["metrics"] = {name: _plain(value) for name, value in metrics.items()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Convert a value to one that JSON can hold; infinity and NaN become texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
