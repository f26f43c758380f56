"""Push callback: upload the exported models of a run, and on request its checkpoints, to a repository on the Hugging
Face Hub, while training continues.

Its strategies correspond to the ``hub_strategy`` of ``transformers``. The export thread does the uploads. If they are
slower than the saves, only the newest save is pushed, unless ``always`` is set. The login is that of the Hub library
(``hf auth login`` or ``HF_TOKEN``), since a token does not belong in a recipe.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import Problem, UserError
from ..checkpoint.export.model_card import CARD, MARK
from .export import Export

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
NOT_ALLOWED = (400, 401, 403, 404)


class Push(Export):
    """Exports like ``Export``, then uploads the export.

    Args:
        hub_id: repository ``owner/name``, which is created if it does not exist.
        strategy: ``end`` pushes the last model, ``every_save`` the model at each save; ``checkpoint`` also pushes the
            newest checkpoint, as ``last-checkpoint``, and ``all_checkpoints`` all of them, as ``checkpoints/step_*``.
            A run can be resumed from these folders.
        private: whether a new repository is private; null takes the owner's default.
        dtype: data type of the exported weights: fp32, bf16 or fp16.
        ema: export the averaged weights.
        max_shard_size: size of the largest weight file, such as ``500MB`` or ``5GB``.
        memory: largest memory of the export, in addition to the largest tensor.
        out: folder of the export that is pushed; null takes ``exported`` in the run folder.
        merge: merge adapters into their base; else an adapter run pushes its adapters, as peft does.
        quantize: how to quantise linear layers (nf4, fp4 or int8); adapters are merged into their base before.
        always: push every save, one after the other; else only the newest of those that were made during a push.
    """

    def __init__(
        self,
        hub_id: str,
        strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "every_save",
        private: bool | None = None,
        dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        ema: bool = False,
        max_shard_size: str = "5GB",
        memory: str = "1GiB",
        out: str | None = None,
        merge: bool = False,
        quantize: Literal["nf4", "fp4", "int8"] | None = None,
        always: bool = False,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy={strategy!r} is not known; use one of {', '.join(STRATEGIES)}")
        at = "end" if strategy == "end" else "every_save"
        super().__init__(at, dtype, ema, max_shard_size, memory, out, merge, quantize)
        self.hub_id, self.strategy, self.private = hub_id, strategy, private
        self.keeps_all = always or strategy == "all_checkpoints"

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Create the repository, so that problems with it are reported before training.

        Raises:
            UserError: there is no login, or it may not write there; raised on all ranks.
        """
        from huggingface_hub.utils import disable_progress_bars

        super().on_train_begin(trainer, state, control)
        disable_progress_bars()  # bars of uploads would disturb the run's own
        refused = trainer.mesh.broadcast_object(self._refused() if trainer.mesh.is_main else None)
        if refused:
            fix = "log in with `hf auth login` or set HF_TOKEN, and name a repository you may write to"
            raise UserError(Problem("callbacks.push.hub_id", f"cannot be pushed to: {refused}", fix, self.hub_id))

    def queued(self, trainer: Trainer) -> None:
        """Tell all callbacks of a push that begins, on all ranks, although rank 0 alone pushes."""
        begins, self.waits = self.waits, False
        if trainer.mesh.broadcast_object(begins):
            trainer.emit("on_push_begin")

    @property
    def place(self) -> str:
        return f"hub:{self.hub_id}"

    def exported(self, checkpoint: Path) -> bool:
        try:
            self._push(checkpoint)
        except Exception as error:  # the client and the HTTP library below it raise errors of many types
            log.error("%s was not pushed; training goes on. %s", checkpoint.name, error)
            return False
        return True

    def _push(self, checkpoint: Path) -> None:
        step = f"Step {int(checkpoint.name.removeprefix('step_'))}"
        self._make()
        self._upload(self.folder, None, step)
        if self.strategy == "checkpoint":
            self._upload(checkpoint, "last-checkpoint", f"{step}, checkpoint")
        elif self.strategy == "all_checkpoints":
            self._upload(checkpoint, f"checkpoints/{checkpoint.name}", f"{step}, checkpoint")
        log.info("pushed %s to %s", checkpoint.name, self.hub_id)

    def _refused(self) -> str | None:
        """The reason why pushing is impossible, if it is certain. A network failure is not, since it may be over at the
        first push."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            self._make()
        except HFValidationError as error:
            return str(error)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in NOT_ALLOWED:
                return error.server_message or str(error)
            log.warning("%s cannot be reached now: %s", self.hub_id, error)
        except Exception as error:  # the HTTP library's own errors
            log.warning("%s cannot be reached now: %s", self.hub_id, error)
        return None

    def _make(self) -> None:
        from huggingface_hub import HfApi

        HfApi().create_repo(self.hub_id, private=self.private, exist_ok=True)

    def _has_own_card(self) -> bool:
        """Whether the repository has a card that a person wrote, which is kept."""
        from huggingface_hub import HfApi

        api = HfApi()
        if not api.file_exists(self.hub_id, CARD):
            return False
        return MARK not in Path(api.hf_hub_download(self.hub_id, CARD)).read_text(encoding="utf-8", errors="replace")

    def _upload(self, folder: Path, where: str | None, message: str) -> None:
        """Upload a folder; in a subfolder of the repository, files of an earlier push that it lacks are deleted."""
        from huggingface_hub import HfApi

        HfApi().upload_folder(
            repo_id=self.hub_id,
            folder_path=folder,
            path_in_repo=where,
            commit_message=message,
            delete_patterns="*" if where else None,
            ignore_patterns=CARD if where is None and self._has_own_card() else None,
        )
