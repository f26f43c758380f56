"""Tracker for CodeCarbon: measure the energy used by the main rank's machine or process, and estimate the CO2
emissions.

The library measures by itself (by RAPL, by NVML, or from the load) and writes ``emissions.csv`` to the run folder, one
row for each start of the run. CodeCarbon takes no metrics of training; the run's group and its trial of a search are in
the row's metadata. Energy and CO2 are also added to the logged metrics as ``energy_kwh`` and ``co2_kg``, so that
``metrics.jsonl`` and every other tracker have them too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import Tracker

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

EVERY = 15.0
"""Seconds between two measurements."""


@dataclass(eq=False)
class CodeCarbon(Tracker):
    """Measures energy."""

    country: str | None = None
    """ISO code of three letters of the country whose mix of electricity is counted. null asks a service where this
    machine is, and counts the mean of the world if the service cannot be reached."""
    process_only: bool = False
    """Count the share of this process only, by its load; else the whole machine."""

    TITLE: ClassVar = "CodeCarbon"
    LIBRARY: ClassVar = "codecarbon"
    PACKAGE: ClassVar = "codecarbon"
    KEY: ClassVar = "codecarbon"
    LOGGERS: ClassVar = ("codecarbon",)
    KEEPS: ClassVar = ()

    def flaws(self) -> Iterator[str]:
        yield from super().flaws()
        if self.country is not None and not (len(self.country) == 3 and self.country.isalpha()):
            yield f"country={self.country!r} is not an ISO code of three letters; write one, such as DEU"

    def start(self, run: AboutRun) -> str:
        library = self.module()
        self._found: dict[str, float] = {}
        found, self._read_at = self._found, 0.0

        class Figures(self.module("codecarbon.output").BaseOutput):
            """Takes the figures of a measurement."""

            def out(self, total: Any, delta: Any) -> None:
                found.update(energy_kwh=total.energy_consumed, co2_kg=total.emissions)

            def live_out(self, total: Any, delta: Any) -> None:
                self.out(total, delta)

        options: dict[str, Any] = {
            "project_name": run.project,
            "experiment_name": run.name,
            "output_dir": str(run.folder),
            "measure_power_secs": EVERY,
            "tracking_mode": "process" if self.process_only else "machine",
            "log_level": "critical",
            "save_to_api": False,
            "allow_multiple_runs": True,
            "on_csv_write": "update",
            "output_handlers": [Figures()],
            "metadata": {"group": run.group, "trial": run.trial, "tags": ",".join(run.tags)},
        }
        if self.country is None:
            self._meter: Any = library.EmissionsTracker(**options)
        else:
            self._meter = library.OfflineEmissionsTracker(country_iso_code=self.country.upper(), **options)
        self._meter.start()
        return run.id or run.name

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if control.log and self._sender is not None:
            trainer.extra_metrics.update(self._found)

    def write(self, lines: Sequence[Line]) -> None:
        """Measure, if the last measurement is old enough; the library takes no lines."""
        if time.monotonic() - self._read_at >= EVERY:
            self._read_at = time.monotonic()
            self._meter.flush()

    def finish(self, status: Status, reason: str) -> None:
        self._meter.stop()
