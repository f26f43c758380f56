"""Tests that Python's garbage collection is off during slow imports, and is restored after them. From then on it skips
the imported objects.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Iterator

import pytest
from trireme.launch.quick_imports import HEAVY, quick_imports


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


class Part:
    """An object that refers to itself, as models do, so that only garbage collection can free it."""

    def __init__(self) -> None:
        self.whole = self


def test_collections_stop_and_go_on_after_a_failing_import() -> None:
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_collections_that_were_off_stay_off() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()


def test_objects_of_heavy_imports_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.unfreeze()
    with quick_imports():
        for number in range(HEAVY + 1):
            monkeypatch.setitem(sys.modules, f"heavy_{number}", types.ModuleType(f"heavy_{number}"))
    assert gc.get_freeze_count() > 0


def test_a_process_that_trains_many_times_keeps_nothing_of_the_earlier_runs() -> None:
    gc.unfreeze()
    seen = weakref.ref(Part())  # only a collection finds it
    with quick_imports():
        pass
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None
