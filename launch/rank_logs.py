"""Choose the output and error files of the ranks that are started on this machine, and find a rank's newest output.

Output of ranks other than 0 goes to ``RUN/logs/START/attempt_N/RANK``. Error files go to another folder: a full disk
under the run folder may be the cause of the failure, and torch cannot read an error file that was cut off.
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
    """Log files by global rank. torch's own class uses local ranks, so machines with a common disk would collide."""

    def __init__(self, logs: Path, errors: Path) -> None:
        """
        Raises:
            UserError: ``logs`` cannot be written; raised again when torch asks for the files of a new attempt.
        """
        self.logs, self.errors = logs, errors
        self.folders: list[Path] = []
        """Folders of this machine's ranks; other machines may still be writing to theirs."""
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
        """Remove empty log files and their folders after the ranks have ended; most ranks print nothing."""
        for folder in self.folders:
            for file in folder.glob("std*.log"):
                if not file.stat().st_size:
                    file.unlink()
            _remove_if_empty(folder)
        attempts = {folder.parent for folder in self.folders}
        if len(attempts) == 1:  # several folders are kept, since they show how often ranks were started
            _remove_if_empty(*attempts)
            _remove_if_empty(*(attempt.parent for attempt in attempts))

    def _prepare(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(unwritable(self.logs.parent, error)) from None


def newest_output(logs: Path, rank: int) -> str:
    """The newest output file of a rank: its standard error, else its log file; empty for rank 0 (the terminal)."""
    files = [file for file in logs.glob(f"*/attempt_*/{rank}/stderr.log") if file.stat().st_size]
    own = logs / f"rank{rank}.log"
    newest = max(files, key=lambda path: path.stat().st_mtime, default=own)
    return str(newest) if rank > 0 and newest.is_file() else ""


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
