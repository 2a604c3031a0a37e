"""The event stream of a run and the history of its steps, on disk and to the observers."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit import events, storage
from tunekit.events import Event, Observer

__all__ = ["EventStream", "History", "read_metrics"]

logger = logging.getLogger("tunekit")


def _json_line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, default=str) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``metrics.jsonl``; a torn last line is left out. A missing file has none."""
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _torn(path: Path) -> bool:
    """Whether the last line was cut off while it was written; a line appended to it would be lost."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


class EventStream:
    """Numbers events, writes them to a JSON Lines file, and tells the observers.

    An observer that raises is reported once to the log; the run goes on. So it does when one calls ``sys.exit``; any
    other exception that is no ``Exception``, such as ``KeyboardInterrupt``, is meant for the host and passes.
    """

    def __init__(self, run_id: str, path: Path, observers: Sequence[Observer]) -> None:
        self._run_id = run_id
        self._path = path
        self._observers = list(observers)
        self._failed: set[int] = set()
        self._seq = 0
        self.notices: list[str] = []
        with storage.disk_errors(path, "reading events.jsonl"):
            if _torn(path):
                with path.open("a", encoding="utf-8") as stream:
                    stream.write("\n")

    def emit(self, cls: type[Event], step: str | None = None, **values: Any) -> None:
        """Make an event and pass it on. Observers are told even if it cannot be written.

        Raises:
            ArtifactError: if it cannot be written.
        """
        # What an observer does to an event must not reach the result that the event tells of.
        event = cls(run_id=self._run_id, seq=self._seq, time=time.time(), step=step, **copy.deepcopy(values))
        self._seq += 1
        if isinstance(event, events.Notice):
            self.notices.append(f"{step}: {event.message}" if step else event.message)
        try:
            self._write(event)
        finally:
            self._tell(event)

    def _write(self, event: Event) -> None:
        with storage.disk_errors(self._path, "writing events.jsonl"), self._path.open("a", encoding="utf-8") as stream:
            stream.write(_json_line(events.event_to_dict(event)))

    def _tell(self, event: Event) -> None:
        for index, observer in enumerate(self._observers):
            try:
                observer(event)
            except (Exception, SystemExit):
                if index not in self._failed:
                    self._failed.add(index)
                    logger.warning("observer %r raised; the run goes on", observer, exc_info=True)


class History:
    """A step's ``metrics.jsonl``. After a resume, entries of optimizer steps that run again are replaced.

    An optimizer step may have several entries, such as one of the training loss and one of the validation loss.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = read_metrics(path)
        self._last = max((entry["step"] for entry in self._entries), default=0)
        self._here: int | None = None
        self._rewrite = _torn(path)

    def record(self, global_step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Append an entry; returns its finite numbers."""
        entry = {"step": global_step, **values}
        if self._last >= global_step > 0 and global_step != self._here:
            self._entries = [old for old in self._entries if old["step"] < global_step]
            self._rewrite = True
        with storage.disk_errors(self._path, "writing metrics.jsonl"):
            if self._rewrite:
                storage.write_text(self._path, "".join(_json_line(old) for old in self._entries))
                self._rewrite = False
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(_json_line(entry))
        self._entries.append(entry)
        self._last = global_step or self._last
        self._here = global_step
        return {key: value for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
