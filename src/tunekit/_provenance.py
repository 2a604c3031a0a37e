"""Where the code of a run comes from: distribution, file and hash of every component that it uses.

Nothing is imported to find out, and nothing that cannot be read fails a run: it is null, with the reason.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tunekit._step_data import further_requests, own_validation
from tunekit._work import Work
from tunekit.errors import TunekitError
from tunekit.plan import ComponentRef, ResolvedPlan, ResolvedStep
from tunekit.session import Session

__all__ = ["Provenance", "package_digest"]


class Provenance:
    """The code of the components of one run, as it is on disk when this is made."""

    def __init__(self, resolved: ResolvedPlan, work: Sequence[Work], session: Session) -> None:
        self._session = session
        self._facts: dict[ComponentRef, dict[str, Any]] = {}
        self._packages: dict[Path, str] = {}
        self._distributions: dict[str, bool] = {}
        # A data set whose code changes has other rows, and so another key; a format's rows are not in the key.
        self._formats = {
            item.name: component
            for item in work
            if item.data is not None and (component := _named(session, "format", item.data.format)) is not None
        }
        for component in used(resolved, work, session):
            self._facts[component] = self._look_up(component)

    def to_data(self) -> list[dict[str, Any]]:
        """One record for each component, as JSON types, in the order of their use.

        What could not be found at first, such as a module that only its package can import, is looked for again.
        """
        return [dict(self._get(component)) for component in list(self._facts)]

    def code(self, step: ResolvedStep) -> list[dict[str, Any]]:
        """What a step's result keeps of the code that makes it: id and package hash of each of its components."""
        kept = ("id", "kind", "version", "package_sha256")
        return [{key: facts[key] for key in kept} for facts in map(self._get, self._making(step))]

    def _making(self, step: ResolvedStep) -> list[ComponentRef]:
        """The components whose code decides what a step gives."""
        form = self._formats.get(step.name)
        return [*_of_step(step), *([form] if form is not None else [])]

    def changed(self, step: ResolvedStep, recorded: object) -> list[ComponentRef]:
        """The components of ``step`` whose code is not the one that ``recorded``, an earlier :meth:`code`, tells of.

        What is unknown on either side does not count, nor does a component whose version is the hash of its code: that
        is why it is the same step, however the file around it was edited.
        """
        if not isinstance(recorded, list):
            return []
        before = {
            (item.get("kind"), item.get("id")): item.get("package_sha256")
            for item in recorded
            if isinstance(item, Mapping)
        }
        now = {(item["kind"], item["id"]): item["package_sha256"] for item in self.code(step)}
        return [
            component
            for component in self._making(step)
            if not (component.provider == "inline" and component.version)
            and (old := before.get((component.kind, component.id)))
            and (new := now.get((component.kind, component.id)))
            and old != new
        ]

    def _get(self, component: ComponentRef) -> dict[str, Any]:
        facts = self._facts.get(component)
        if facts is None or facts["package_sha256"] is None:
            facts = self._facts[component] = self._look_up(component)
        return facts

    def _look_up(self, component: ComponentRef) -> dict[str, Any]:
        module = component.target.partition(":")[0]
        facts: dict[str, Any] = {
            "id": component.id,
            "kind": component.kind,
            "stage": component.stage,
            "target": component.target,
            "distribution": component.provider,
            "version": component.version,
            "module": module,
            "file": None,
            "sha256": None,
            "package_sha256": None,
            "editable": self._editable(component.provider),
            "reason": "",
        }
        try:
            file = _file_of(module)
            root, package = _home(file, module)
            facts["file"] = file.relative_to(root).as_posix()
            facts["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            if package not in self._packages:
                self._packages[package] = package_digest(package, root)
            facts["package_sha256"] = self._packages[package]
        except Exception as error:  # noqa: BLE001  (import hooks and file systems of strangers)
            # The text of an OSError has the absolute path in it.
            facts["reason"] = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
            if component.provider == "inline":
                facts["sha256"] = self._source_digest(component)
        return facts

    def _source_digest(self, component: ComponentRef) -> str | None:
        """Hash of the source text of a component that lies in no file, such as one typed into a notebook."""
        try:
            return hashlib.sha256(inspect.getsource(self._session.load(component)).encode()).hexdigest()
        except Exception:  # noqa: BLE001  (made by exec, or a target that cannot be loaded, which the run will say)
            return None

    def _editable(self, provider: str) -> bool:
        if provider not in self._distributions:
            self._distributions[provider] = _editable(provider)
        return self._distributions[provider]


def used(resolved: ResolvedPlan, work: Iterable[Work], session: Session) -> list[ComponentRef]:
    """Every component that a run uses, in the order of use, none twice."""
    found: dict[ComponentRef, None] = {}
    if resolved.model_component is not None:
        found[resolved.model_component] = None
    for item in work:
        found.update(dict.fromkeys(_of_step(item.step)))
        for kind, name in _data_names(item):
            component = _named(session, kind, name)
            if component is not None:
                found[component] = None
    found.update(dict.fromkeys(component for component, _ in resolved.trackers))
    return list(found)


def _data_names(item: Work) -> Iterator[tuple[str, object]]:
    own = own_validation(item.spec, item.options)
    requests = (*further_requests(item.options).values(), *((own,) if own is not None else ()))
    for ref in (item.step.data, *(request.ref for request in requests)):
        yield "dataset", ref
    for data in (item.data, *item.read.further.values(), item.read.validation):
        if data is not None:
            yield "format", data.format


def _of_step(step: ResolvedStep) -> list[ComponentRef]:
    adapter = [step.adapter.component] if step.adapter is not None else []
    rewards = [reward.component for reward in step.rewards if reward.component is not None]
    return [step.component, *adapter, *step.benchmarks, *rewards]


def _named(session: Session, kind: str, name: object) -> ComponentRef | None:
    if not isinstance(name, str) or (kind == "format" and "/" not in name):  # tunekit's own formats have no provider
        return None
    try:
        entry = session.registry.get(kind, name)
    except TunekitError:
        return None
    return entry.component if entry is not None else None


def package_digest(package: Path, root: Path) -> str:
    """SHA-256 (hex) over the Python files of a package folder, or over one module.

    The same as ``find PACKAGE -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum``, run in ``root``.

    Raises:
        OSError: if a file cannot be read.
    """
    files = package.rglob("*.py") if package.is_dir() else [package]
    names = sorted((path.relative_to(root).as_posix(), path) for path in files if path.is_file())
    total = hashlib.sha256()
    for name, path in names:
        total.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return total.hexdigest()


def _file_of(name: str) -> Path:
    """The file of a module, without importing it.

    Raises:
        LookupError: if there is none.
    """
    loaded = sys.modules.get(name)
    file = vars(loaded).get("__file__") if loaded is not None else None
    if isinstance(file, str):
        return Path(file).absolute()
    if loaded is not None:
        raise LookupError(f"the module {name} lies in no file")
    parts = name.split(".")
    path: list[str] = []
    origin: str | None = None
    for depth in range(1, len(parts) + 1):
        full = ".".join(parts[:depth])
        parent = sys.modules.get(full)
        if parent is not None and "__path__" in vars(parent):
            path, origin = list(parent.__path__), None
            continue
        spec = importlib.util.find_spec(full) if depth == 1 else PathFinder.find_spec(full, path)
        if spec is None:
            raise LookupError(f"there is no module {full}")
        path, origin = list(spec.submodule_search_locations or ()), spec.origin if spec.has_location else None
    if origin is None:
        raise LookupError(f"the module {name} lies in no file")
    return Path(origin).absolute()


def _home(file: Path, name: str) -> tuple[Path, Path]:
    """The folder that a module's top-level name lies in, and its outermost regular package, or the file itself.

    A namespace package is shared by several distributions; what lies in it counts one by one.
    """
    parts = name.split(".")
    up = len(parts) if file.stem == "__init__" else len(parts) - 1
    if up >= len(file.parents):
        return file.parent, file
    root = file.parents[up]
    folders = [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    if up and folders[up - 1] != file.parent:
        return file.parent, file
    return root, next((folder for folder in folders if (folder / "__init__.py").is_file()), file)


def _editable(provider: str) -> bool:
    try:
        text = importlib.metadata.distribution(provider).read_text("direct_url.json")
        return bool(json.loads(text or "{}").get("dir_info", {}).get("editable", False))
    except Exception:  # noqa: BLE001  (no such distribution, or damaged metadata)
        return False
