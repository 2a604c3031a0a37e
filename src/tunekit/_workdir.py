"""The folders of a run: unfinished steps aside, finished ones under their names, superseded ones kept."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tunekit import storage
from tunekit.artifacts import Artifact
from tunekit.errors import ArtifactError
from tunekit.plan import digest

__all__ = ["Finished", "Workdir", "result_files"]

Finished = tuple[Artifact, Path, float]
"""A finished step: its artifact, its folder, and the seconds it took."""


class Workdir:
    """Finds, publishes and sets aside step folders. ``notice(code, message)`` is told about damage."""

    def __init__(self, path: Path, notice: Callable[[str, str], None]) -> None:
        self.path = path
        self._notice = notice
        self._claimed: set[Path] = set()

    def partial(self, folder: str, key: str, input_hash: str) -> Path:
        """The folder in which the step with this key and input weights is worked on; made if missing.

        An interrupted step of the same key and input left its checkpoints there.
        """
        partial = self.path / ".partial" / f"{folder}-{digest([key, input_hash])[:8]}"
        with storage.disk_errors(partial, f"preparing {folder}"):
            partial.mkdir(parents=True, exist_ok=True)
        return partial

    def publish(self, partial: Path, folder: str) -> Path:
        """Give a finished step its name. An older one of that name is set aside."""
        final = self.path / folder
        self._set_aside(final)
        storage.publish(partial, final)
        for stale in (self.path / ".partial").glob(f"{folder}-????????"):
            shutil.rmtree(stale, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / ".partial").rmdir()
        self._claimed.add(final)
        return final

    def find(self, folder: str, key: str, input_hash: str) -> Finished | None:
        """The finished step with this key and input weights, wherever an earlier run put it, or None.

        A step that ran again may have come out with other weights (another machine, another library), and then what was
        made of the old ones does not count.

        It is moved to ``folder`` if it lies elsewhere, and left out, with a notice, if its files are damaged.
        """
        final = self.path / folder
        others = [*sorted(self.path.glob("*/")), *sorted((self.path / "superseded").glob("*/"))]
        for candidate in [final, *(other for other in others if other != final and other not in self._claimed)]:
            record = candidate / "result.json"
            if not record.is_file():
                continue
            try:
                data = storage.read_json(record)
                artifact = Artifact.from_data(data)
            except ArtifactError as error:
                self._notice("damaged-result", f"{record} is damaged and is not used: {error.message}")
                continue
            if artifact.fingerprint != key or data.get("input_weights_hash", "") != input_hash:
                continue
            problem = _damage(candidate, artifact, data.get("files", {}))
            if problem:
                self._notice("damaged-artifact", f"{problem}; the step runs again")
                continue
            if candidate != final:
                self._set_aside(final)
                with storage.disk_errors(final, f"moving {candidate.name}"):
                    candidate.rename(final)
            self._claimed.add(final)
            return artifact, final, float(data.get("seconds", 0.0))
        return None

    def _set_aside(self, final: Path) -> None:
        """Move a step that no longer fits out of the way; nothing finished is deleted."""
        if not final.exists():
            return
        old = ""
        with contextlib.suppress(ArtifactError):
            old = str(storage.read_json(final / "result.json").get("fingerprint", ""))[:8]
        name = f"{final.name}-{old or 'damaged'}"
        target = self.path / "superseded" / name
        with storage.disk_errors(target, f"moving {final.name} aside"):
            target.parent.mkdir(exist_ok=True)
            number = 1
            while target.exists():
                number += 1
                target = target.with_name(f"{name}-{number}")
            final.rename(target)


def result_files(folder: Path) -> dict[str, int]:
    """Sizes in bytes of what a finished step consists of, by path in its folder; its checkpoints are no part of it."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    apart = ("checkpoints", "result.json")
    return {name.as_posix(): path.stat().st_size for name, path in files.items() if name.parts[0] not in apart}


def _damage(folder: Path, artifact: Artifact, files: Mapping[str, int]) -> str:
    for name, size in files.items():
        try:
            found_size = (folder / name).stat().st_size
        except OSError:
            return f"{folder / name} is missing"
        if found_size != size:
            return f"{folder / name} has {found_size} bytes in place of {size}"
    if artifact.model is None:
        return ""
    path = folder / artifact.model.path
    try:
        found = storage.weights_digest(path)
    except ArtifactError as error:
        return error.message
    if found != artifact.model.weights_hash:
        return f"the weights in {path} are not the ones that were written"
    return ""
