"""Files of ranks that are started on this machine: their output, and what they say of a failure.

Output of ranks but the first goes to ``RUN/logs/START/attempt_N/RANK``. Errors go to another folder, since the disk of
the run may be what has failed: torch falls over a file that could only be begun.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from ..errors import UserError
from ..trainer.error_file import ERROR_FILE
from ..trainer.run_folder import unwritable


class RankLogs(LogsSpecs):
    """torch's own counts ranks by machine: several machines with one disk would write the same files."""

    def __init__(self, logs: Path, errors: Path) -> None:
        """
        Raises:
            UserError: ``logs`` cannot be written; also when torch asks for a new attempt's files.
        """
        self.logs, self.errors = logs, errors
        self.folders: list[Path] = []
        """Of the ranks of this machine; other machines may be writing still."""
        self._prepare(logs)

    @property
    def root_log_dir(self) -> str:
        return str(self.logs)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        files, attempt = LogsDest(dict.fromkeys(envs, ""), dict.fromkeys(envs, "")), tempfile.mkdtemp(dir=self.errors)
        for local_rank, env in envs.items():
            files.error_files[local_rank] = env[ERROR_FILE] = f"{attempt}/{local_rank}.json"
            start = self.logs / env["TORCHELASTIC_RUN_ID"]
            folder = start / f"attempt_{env['TORCHELASTIC_RESTART_COUNT']}" / env["RANK"]
            self._prepare(folder)
            self.folders.append(folder)
            if env["RANK"] != "0":
                files.stdouts[local_rank] = f"{folder}/stdout.log"
                files.stderrs[local_rank] = f"{folder}/stderr.log"
        return files

    def drop_empty(self) -> None:
        """Called when the ranks are gone. Most have said nothing: their empty files and folders go."""
        for folder in self.folders:
            for file in folder.glob("std*.log"):
                if not file.stat().st_size:
                    file.unlink()
            _remove_if_empty(folder)
        attempts = {folder.parent for folder in self.folders}
        if len(attempts) == 1:  # the folders of several tell how often ranks were started
            _remove_if_empty(*attempts)
            _remove_if_empty(*(attempt.parent for attempt in attempts))

    def _prepare(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(unwritable(self.logs.parent, error)) from None


def newest_output(logs: Path, rank: int) -> str:
    """What a rank other than 0 has said last: errors, else its log file; empty for rank 0, which has the terminal."""
    files = [file for file in logs.glob(f"*/attempt_*/{rank}/stderr.log") if file.stat().st_size]
    own = logs / f"rank{rank}.log"
    newest = max(files, key=lambda path: path.stat().st_mtime, default=own)
    return str(newest) if rank > 0 and newest.is_file() else ""


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
