"""Every number that a run logs, one line each: run, step of the pipeline, optimizer step, name, value."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TextIO

from tunekit.events import Event, MetricLogged, RunStarted
from tunekit_example.options import CsvOptions

COLUMNS = ("run_id", "step", "global_step", "name", "value")


class CsvTracker:
    """A run that goes on in the same folder adds to the file."""

    def __init__(self, options: CsvOptions) -> None:
        self.options = options
        self._file: TextIO | None = None

    def on_event(self, event: Event) -> None:
        """Write the numbers of one event. ``repr`` keeps every digit."""
        if isinstance(event, RunStarted):
            self._open(Path(self.options.path or Path(event.workdir) / "metrics.csv"))
        if isinstance(event, MetricLogged) and self._file is not None:
            lines = ((event.run_id, event.step, event.global_step, *item) for item in event.values.items())
            csv.writer(self._file).writerows((*line, repr(value)) for *line, value in lines)
            self._file.flush()

    def _open(self, path: Path) -> None:
        self.close()
        self._file = path.open("a", encoding="utf-8", newline="")
        if path.stat().st_size == 0:
            csv.writer(self._file).writerow(COLUMNS)
            self._file.flush()

    def close(self) -> None:
        """The run is over."""
        if self._file is not None:
            self._file.close()
            self._file = None
