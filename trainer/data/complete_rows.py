"""Leave out rows with missing values in the columns that a task needs: nulls, NaNs and empty texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


def complete_rows(data: Dataset, needed: Sequence[str]) -> tuple[Dataset, str]:
    """The rows that have all of ``needed``, and one line on the others; empty if there are none."""
    import numpy as np  # imported here, since a check only needs the names in this file

    if not len(data) or not needed:
        return data, ""
    lacks = {name: [] for name in needed}
    for batch in data.select_columns(list(needed)).with_format("arrow").iter(batch_size=10_000):
        for name, found in lacks.items():
            found.append(_lacking(batch[name]))  # type: ignore[index]
    masks = {name: np.concatenate(found) for name, found in lacks.items()}
    incomplete = np.any(list(masks.values()), axis=0)
    if not incomplete.any():
        return data, ""
    parts = [
        f"{int(mask.sum())} without {name} (the first is row {int(mask.argmax()) + 1})"
        for name, mask in masks.items()
        if mask.any()
    ]
    line = f"left out {int(incomplete.sum())} of {len(data)} rows: {', '.join(parts)}"
    return data.select(np.flatnonzero(~incomplete)), line


def _lacking(column: Any) -> np.ndarray:
    """Which values of a column of Arrow are missing."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported, so no type checker knows them
    missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    return missing.to_numpy(zero_copy_only=False) if isinstance(missing, pa.Array) else missing.to_numpy()
