"""Write DeepSpeed's own checkpoint files for its tools. A resume reads the common layout, which lies beside them.

``engine.save_checkpoint`` waits for all ranks several times. A rank whose disk is full must not leave the others there,
so a failed write is kept until all ranks are through.
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
        step, samples: where training stands; the engine has counted since its own start only.

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
    except OSError as error:  # ``latest``, which rank 0 writes last: the others wait at the end
        writer.failures.append(error)
        dist.barrier()
    finally:
        engine.checkpoint_engine = kept
        del engine._copy_recovery_script  # the method of its class again
    if writer.failures:
        raise OSError(f"DeepSpeed's files: {writer.failures[0]}")


def _writer() -> Any:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    class Writer(TorchCheckpointEngine):
        """Writes at once, in files that can be mapped into memory, and remembers what failed."""

        def __init__(self) -> None:
            super().__init__()
            self.failures: list[Exception] = []

        def save(self, state_dict: Any, path: str) -> None:
            self.remembering(torch.save)(state_dict, path)

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            self.remembering(os.makedirs)(path, exist_ok=exist_ok)

        def remembering(self, function: Callable[..., Any]) -> Callable[..., None]:
            """Wrap ``function`` so that it remembers an error instead of raising: other ranks wait for this one in the
            collectives that follow."""

            def called(*arguments: Any, **options: Any) -> None:
                try:
                    function(*arguments, **options)
                except (OSError, RuntimeError) as error:  # torch's own writer raises the latter when the disk is full
                    self.failures.append(error)

            return called

    return Writer()
