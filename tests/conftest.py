"""One thread per process: ranks share two cores, and forked ranks must not inherit a thread pool."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from helpers.slurm import Cluster, cluster

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """Ranks forked later would inherit a process group; benchmarks silence logging, which later tests read."""
    yield
    logging.disable(logging.NOTSET)
    assert not torch.distributed.is_initialized(), "this test left a process group behind"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Prepared data of the whole session in one folder, so that tests share it and nobody's home is touched."""
    os.environ["TRIREME_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    with cluster() as started:
        yield started
