"""Pytest fixtures for all tests: one folder for prepared data, and a real SLURM cluster for tests that ask for it.
After each test, logging is restored, and the test fails if it has left a process group behind.

torch computes with one thread, since ranks share two cores and forked ranks must not inherit a thread pool.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.slurm import Cluster, cluster

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """Restore logging after each test, and fail a test that leaves a process group, which forked ranks would inherit.

    Benchmarks silence logging, which later tests read, and commands that show a recipe (``--info``) switch it on.
    """
    level, handlers = logging.root.level, list(logging.root.handlers)
    yield
    logging.disable(logging.NOTSET)
    logging.root.setLevel(level)
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in handlers:
            logging.root.removeHandler(handler)
    _forget_closed_streams()
    assert not torch.distributed.is_initialized(), "this test left a process group behind"


def _forget_closed_streams() -> None:
    """Point logging handlers whose stream is closed to the real standard error.

    A library that is imported within a test makes a handler that keeps that test's standard error (transformers also
    keeps its ``flush``). A later message would print "Logging error" and a traceback into another test's output.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", ())}:
        if getattr(getattr(handler, "stream", None), "closed", False):
            handler.stream = sys.__stderr__
            vars(handler).pop("flush", None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep prepared data of the session in one folder, so that tests share it and no home folder is touched."""
    os.environ["TRIREME_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield


@pytest.fixture(scope="module", autouse=True)
def _end_kept_ranks() -> Iterator[None]:
    yield
    kept_ranks.end()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    with cluster() as started:
        yield started
