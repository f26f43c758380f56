"""Seed the random generators of torch, numpy and Python anew before each step, so that a resume needs no saved
generator state.

Fused attention kernels use torch's generator, and some models and users' tasks use those of numpy and Python. Dropout
is seeded separately (``models/noise.py``).
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_step(seed: int, step: int, data_rank: int, device: torch.device) -> None:
    """Seed the generators of this process from (seed, step, data rank)."""
    key = f"{seed}/{step}/{data_rank}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
    # torch.manual_seed is avoided: without a GPU it queues the call, with its stack trace, at every step.
    torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
