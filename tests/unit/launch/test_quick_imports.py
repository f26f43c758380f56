"""Garbage collection is off during heavy imports, and is as before afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from trireme.launch.quick_imports import quick_imports


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


def test_collections_stop_and_go_on_after_a_failing_import() -> None:
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() > 0


def test_who_has_switched_them_off_keeps_them_off() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()
