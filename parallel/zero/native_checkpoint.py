"""Write checkpoint files in DeepSpeed's own format, so that DeepSpeed's tools can read them. trireme resumes the run
from its own checkpoint files, not from these.

``engine.save_checkpoint`` waits for all ranks several times. A rank that fails to write must not leave the others
waiting, so it raises its error only after all of these calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .library import quiet


def save_native(engine: Any, folder: Path, step: int, samples: int) -> None:
    """Write ``folder/global_stepN``, ``folder/latest`` and DeepSpeed's scripts; a collective call.

    Args:
        step, samples: counts since the beginning of training; the engine's own counters begin at its start.

    Raises:
        OSError: this rank could not write.
    """
    engine.global_steps, engine.global_samples = step, samples
    kept, writer = engine.checkpoint_engine, _writer()
    engine.checkpoint_engine = writer
    engine._copy_recovery_script = writer.remembering(engine._copy_recovery_script)
    try:
        with quiet():
            engine.save_checkpoint(str(folder), tag=f"global_step{step}")
    except OSError as error:  # rank 0 could not write ``latest``, its last file, and the others wait in a barrier
        writer.failures.append(error)
        dist.barrier()
    finally:
        engine.checkpoint_engine = kept
        del engine._copy_recovery_script  # uncovers the method of the class
    if writer.failures:
        raise OSError(f"DeepSpeed's files: {writer.failures[0]}")


def _writer() -> Any:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    class Writer(TorchCheckpointEngine):
        """Writes synchronously, in files that can be mapped into memory, and collects errors."""

        def __init__(self) -> None:
            super().__init__()
            self.failures: list[Exception] = []

        def save(self, state_dict: Any, path: str) -> None:
            self.remembering(torch.save)(state_dict, path)

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            self.remembering(os.makedirs)(path, exist_ok=exist_ok)

        def remembering(self, function: Callable[..., Any]) -> Callable[..., None]:
            """Wrap ``function`` so that it records an error instead of raising it, because other ranks wait for this
            one in later collectives."""

            def called(*arguments: Any, **options: Any) -> None:
                try:
                    function(*arguments, **options)
                except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
                    self.failures.append(error)

            return called

    return Writer()
