"""A session: one set of plugins and settings. There is no global state besides the default session."""

from __future__ import annotations

import importlib.metadata
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit._lazy import load_target
from tunekit._manager import Hooks
from tunekit._memory_model import MemorySource
from tunekit._registry import Entry, PluginRecord, Registry
from tunekit._secrets import refuse_passwords
from tunekit.errors import (
    ArtifactError,
    DataError,
    MissingDependencyError,
    OptionsError,
    PluginError,
    TunekitError,
    nearest,
)
from tunekit.plan import ComponentRef, FrozenDict, canonical_json, thaw
from tunekit.plugins.specs import BenchmarkSpec, DataFormatSpec, DatasetSpec, Spec, StepSpec, TrainerSpec
from tunekit.settings import Settings

if TYPE_CHECKING:
    from tunekit.data import Dataset, Format
    from tunekit.plugins.protocols import ModelSource
    from tunekit.plugins.views import PreviewContext, PreviewRow

__all__ = ["OBJECT", "Session", "UnmetRequirement", "default_session"]

OBJECT = "object:"
"""Prefix of references to things in memory."""

NO_OBJECTS: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class UnmetRequirement:
    """A package that a component needs and that is missing or of the wrong version."""

    requirement: str
    """As the spec states it, such as ``trl>=1.14``."""
    installed: str | None
    """The version that is there, or None."""

    def __str__(self) -> str:
        return f"{self.requirement} ({'not installed' if self.installed is None else f'{self.installed} is installed'})"


class Session:
    """Plugins, settings, and what can be looked up through them.

    Making one is free: plugins are found and loaded on first use, once, and listing them never imports torch.

    Args:
        plugins: further plugins, asked before installed ones: modules or objects with hook implementations or
            decorated components, or classes and functions that a decorator of :mod:`tunekit.plugins` marked.
        autoload: load the installed plugins (entry points of the group ``tunekit``).
        settings: default: read from the environment.

    Raises:
        PluginError: if two of ``plugins`` are the same component.
    """

    def __init__(self, plugins: Sequence[Any] = (), *, autoload: bool = True, settings: Settings | None = None) -> None:
        self.settings = Settings.from_env() if settings is None else settings
        self.hooks = Hooks(plugins, autoload=autoload, settings=self.settings)
        """The plugins' hooks, behind typed calls."""
        self._made_benchmarks: dict[str, Entry] = {}

    def __repr__(self) -> str:
        return f"<tunekit session {id(self):#x}>"

    @property
    def registry(self) -> Registry:
        """Every component by kind, stage and name."""
        return self.hooks.registry()

    def plugins(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, with its state and, if it is not loaded, the reason."""
        return self.registry.plugins()

    def components(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Every component that can be used, or those of one kind (``trainer``, ``adapter``, ``benchmark`` ...)."""
        return self.registry.components(kind)

    def spec(self, component: ComponentRef) -> Spec:
        """The spec behind a component.

        Raises:
            UnknownNameError: if its plugin is not loaded in this session.
        """
        return self._entry(component).spec

    def benchmark(self, ref: str) -> Entry:
        """The benchmark of a short name, of ``dist/name``, or of another name that a plugin knows, such as a file.

        Raises:
            UnknownNameError: if nobody knows it.
            AmbiguousNameError: if several distributions provide the short name.
            TunekitError: what a plugin says of a name that is its own and cannot be used.
        """
        entry = self.registry.get("benchmark", ref) or self._made_benchmarks.get(ref)
        if entry is None:
            entry = self.hooks.resolve_benchmark(ref)
            if entry is None:
                raise self.registry.unknown("benchmark", ref)
            self._made_benchmarks[ref] = entry
        return entry

    def _entry(self, component: ComponentRef) -> Entry:
        entry = self.registry.get(component.kind, component.id, component.stage)
        if entry is None and component.kind == "benchmark":
            return self.benchmark(component.name)
        return entry or self.registry.find(component.kind, component.id, component.stage)

    # Packages.

    def unmet(self, spec: Spec) -> list[UnmetRequirement]:
        """Requirements of a spec that the installed packages do not meet. Reads metadata; imports none of them.

        Raises:
            PluginError: if a requirement cannot be read.
        """
        from packaging.requirements import InvalidRequirement, Requirement

        found: list[UnmetRequirement] = []
        for text in spec.requires:
            try:
                requirement = Requirement(text)
            except InvalidRequirement as error:
                raise PluginError(
                    f"The requirement {text!r} of {spec.kind} {spec.name!r} cannot be read: {error}.",
                    code="bad-requirement",
                ) from error
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            try:
                version: str | None = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                version = None
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                found.append(UnmetRequirement(requirement=text, installed=version))
        return found

    def install_line(self, spec: Spec, unmet: Sequence[UnmetRequirement] = ()) -> str:
        """What to type to get the packages that ``spec`` needs; empty if nothing is known to be missing."""
        if spec.install:
            return spec.install
        missing = unmet or self.unmet(spec)
        return "pip install " + " ".join(f"'{item.requirement}'" for item in missing) if missing else ""

    # Components.

    def load(self, component: ComponentRef) -> Any:
        """Import a component's target and return it, as it is: a class or a callable.

        Raises:
            MissingDependencyError: if a package that it needs is missing; ``fix`` is the install line.
            PluginError: if the plugin itself is at fault.
        """
        entry = self.registry.get(component.kind, component.id, component.stage)
        if entry is not None and entry.value is not None:
            return entry.value
        return self._import(component, component.target, "target")

    def load_preview(self, component: ComponentRef) -> Callable[[PreviewContext], Iterator[PreviewRow]] | None:
        """The preview callable of a trainer or a step (``TrainerSpec.preview``), or None if it has none. Raises as
        :meth:`load` does."""
        entry = self.registry.get(component.kind, component.id, component.stage)
        if entry is None or not isinstance(entry.spec, TrainerSpec | StepSpec) or not entry.spec.preview:
            return None
        found: Callable[[PreviewContext], Iterator[PreviewRow]] = entry.preview or self._import(
            component, entry.spec.preview, "preview"
        )
        return found

    def create(self, component: ComponentRef, *arguments: Any) -> Any:
        """Import a component's target and call it with ``arguments``.

        Raises:
            PluginError: if the call fails; what a plugin raises on purpose, a ``TunekitError``, comes out unchanged.
            MissingDependencyError: as :meth:`load` does.
        """
        target = self.load(component)
        spec = self._entry(component).spec
        named = spec.arguments if isinstance(spec, BenchmarkSpec) else {}
        try:
            return target(*arguments, **named)
        except TunekitError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"The {component.kind} {component.label} cannot be made.",
                code="component-failed",
                asked=component.target,
                found=f"{type(error).__name__}: {error}",
                fix=f"update {component.provider}, or report it to its authors; details['traceback'] has the traceback",
                details={"component": component.id, "traceback": traceback.format_exc()},
            ) from error

    def options_model(self, component: ComponentRef) -> type[Any] | None:
        """The pydantic model of a component's options, or None if it takes none. Raises as :meth:`load` does."""
        entry = self._entry(component)
        options = entry.spec.options
        if options is None:
            return None
        model = entry.options or self._import(component, options, "options model")
        if not hasattr(model, "model_validate_json"):
            raise PluginError(
                f"The options of {component.id} are not a pydantic model.",
                code="bad-options-model",
                found=f"{options}: {model!r}",
            )
        return model

    def parse_options(self, component: ComponentRef, values: Mapping[str, Any]) -> Any:
        """An instance of a component's options model, or None if it has none.

        ``values`` are JSON types, as a plan holds them; a list stands for a tuple too.

        Raises:
            OptionsError: if a value does not fit. ``details["errors"]`` lists every one.
        """
        model = self.options_model(component)
        if model is None:
            if values:
                raise OptionsError(f"{component.id} has no options.", code="unknown-option", asked=", ".join(values))
            return None
        from pydantic import ValidationError

        try:
            return model.model_validate_json(canonical_json(values))
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False)
            raise OptionsError(
                f"{len(errors)} option{'s' if len(errors) != 1 else ''} of {component.id} cannot be used.",
                found="; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors),
                details={"errors": [{"loc": list(e["loc"]), "type": e["type"], "msg": e["msg"]} for e in errors]},
            ) from error
        except Exception as error:  # a validator of the plugin
            raise PluginError(
                f"The options of {component.id} cannot be checked.",
                code="bad-options-model",
                asked=canonical_json(values),
                found=f"{type(error).__name__}: {error}",
                fix=f"update {component.provider}, or report it to its authors",
            ) from error

    def _import(self, component: ComponentRef, target: str, what: str) -> Any:
        try:
            return load_target(target)
        except TunekitError:
            raise
        except ImportError as error:
            raise self._import_error(component, target, error) from error
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"The {what} of {component.id} {component.version} cannot be imported.",
                code="bad-target",
                asked=target,
                found=f"{type(error).__name__}: {error}",
                fix=f"update {component.provider}, or report it to its authors",
            ) from error

    def _import_error(self, component: ComponentRef, target: str, error: ImportError) -> TunekitError:
        spec = self.spec(component)
        unmet = self.unmet(spec)
        own = target.partition(":")[0].partition(".")[0]
        missing = (error.name or "").partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError)
        line = self.install_line(spec, unmet) if unmet or (spec.install and absent) else ""
        if not line and absent and missing and missing != own:
            line = f"pip install {missing}"
        if not line or (missing == own and not unmet):
            return PluginError(
                f"{component.id} {component.version} cannot be imported.",
                code="bad-target",
                asked=target,
                found=f"{type(error).__name__}: {error}",
                fix=f"reinstall {component.provider}: pip install --force-reinstall {component.provider}",
            )
        return MissingDependencyError(
            f"{component.id} needs a package that is not there.",
            asked=", ".join(spec.requires) or missing,
            found=", ".join(map(str, unmet)) or f"{type(error).__name__}: {error}",
            fix=line,
            details={"component": component.id, "unmet": [item.requirement for item in unmet]},
        )

    # Models.

    def model_component(self, ref: str) -> ComponentRef | None:
        """The component behind a model's short name (or ``dist/name``), or None if ``ref`` is something else: a path,
        a hub id, an object.

        Raises:
            AmbiguousNameError: if several distributions provide the short name.
        """
        entry = self.registry.get("model", ref) if _may_be_name(ref) else None
        return entry.component if entry else None

    def resolve_model(self, ref: str, objects: Mapping[str, Any] = NO_OBJECTS) -> ModelSource:
        """Find the model behind a reference: a short name, a folder, a GGUF file, a hub id, or an object in memory.

        A short name that a plugin provides wins over a folder of that name; write ``./name`` for the folder.
        No weights are read.

        Raises:
            ArtifactError: if nothing knows the reference.
            MissingDependencyError: if the package behind a short name is missing.
        """
        if ref.startswith(OBJECT):
            return MemorySource(ref, _object(ref, objects))
        refuse_passwords({"model": ref})
        component = self.model_component(ref)
        if component is not None:
            return self._source(self.create(component), ref, component.label)
        found = self.hooks.resolve_model(ref)
        if found is None:
            raise self._unknown_model(ref)
        return self._source(found, ref, ", ".join(self.hooks.implementers("tunekit_resolve_model")))

    @staticmethod
    def _source(answer: Any, ref: str, who: str) -> ModelSource:
        from tunekit.plugins.protocols import ModelSource

        if not isinstance(answer, ModelSource):
            raise _wrong_answer(f"the model {ref!r}", answer, "ModelSource", who)
        return answer

    def _unknown_model(self, ref: str) -> ArtifactError:
        from pathlib import Path

        names = self.registry.names("model")
        close = list(nearest(ref, names))
        path = Path(ref).expanduser()
        if path.exists():
            found = f"{path} is there, but no plugin knows how to read it"
        else:
            looks_like_path = ref.startswith((".", "/", "~")) or path.suffix or "\\" in ref
            found = f"no file or folder {path}" if looks_like_path else "no short name, file or folder of that name"
            if path.parent.is_dir():
                close += nearest(path.name, (item.name for item in path.parent.iterdir()))
        broken = [record for record in self.plugins() if record.state != "loaded"]
        parts = [found, "known short names: " + (", ".join(names) or "none")]
        parts += [f"plugin {record.label} is {record.state}: {record.reason}" for record in broken]
        return ArtifactError(
            f"There is no model {ref!r}.",
            code="unknown-model",
            asked=ref,
            found="\n         ".join(parts),
            suggestions=close,
            fix="pass a model folder, a GGUF file, a hub id or a short name"
            if self.registry.components("trainer")
            else "pip install 'tunekit[standard]'",
        )

    # Data.

    def dataset_component(self, ref: str) -> ComponentRef | None:
        """The component behind a data set's short name (or ``dist/name``), or None."""
        entry = self.registry.get("dataset", ref) if _may_be_name(ref) else None
        return entry.component if entry else None

    def resolve_dataset(
        self,
        ref: Any,
        accepts: Sequence[str] = (),
        limit: int | None = None,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        on_bad_row: str = "error",
        objects: Mapping[str, Any] = NO_OBJECTS,
    ) -> Dataset:
        """Open a data set: a short name, a path, a list of rows, an object in memory, or a mixture of these.

        Args:
            ref: what the user passed, or an ``object:`` reference.
            accepts: canonical row shapes that the step can use, in order of preference; empty: any.
            limit: use the first rows only.
            format: data format, when detection should not decide: one of tunekit's own, or a plugin's (``name`` or
                ``dist/name``).
            columns: canonical field to column name.
            on_bad_row: ``error`` or ``skip``.
            objects: things in memory by reference.

        Raises:
            DataError: if it cannot be found or does not fit, naming file, row and field.
            AmbiguousNameError: if several distributions provide the short name of the data set or format.
        """
        from tunekit import data
        from tunekit.data.mixture import is_mix, open_mix

        refuse_passwords({"data": ref})
        if isinstance(ref, str) and ref.startswith(OBJECT):
            ref = _object(ref, objects)
        if is_mix(ref):

            def open_part(part: Any, **options: Any) -> Dataset:
                return self.resolve_dataset(part, objects=objects, **options)

            return open_mix(
                thaw(ref),
                open_part,
                accepts=accepts,
                limit=limit,
                format=format,
                columns=columns,
                on_bad_row=on_bad_row,
            )
        component = self.dataset_component(ref) if isinstance(ref, str) else None
        wanted: dict[str, Any] = {"accepts": tuple(accepts), "limit": limit, "on_bad_row": on_bad_row}
        if component is not None:
            spec = self.spec(component)
            assert isinstance(spec, DatasetSpec)
            self._no_reading(component.id, format, columns)
            rows = self.create(component)
            if isinstance(rows, Iterator):
                rows = _guarded(rows, component)
            return data.canonical_dataset(component.id, spec.schema, rows, **wanted)
        found: Any = ref if _gives_data(ref) else self.hooks.resolve_dataset(ref)
        if _gives_data(found):
            self._no_reading(str(getattr(found, "name", "the data")), format, columns)
            found = found.as_dataset(tuple(accepts), limit=limit, on_bad_row=on_bad_row)
        if found is not None:
            if not isinstance(found, data.Dataset):
                who = ", ".join(self.hooks.implementers("tunekit_resolve_dataset"))
                raise _wrong_answer(f"the data {ref!r:.80}", found, "Dataset", who)
            self._no_reading(found.name, format, columns)
            if accepts and found.schema not in accepts:
                return data.canonical_dataset(found.name, found.schema, found.rows(), **wanted)
            return found if limit is None else found.take(limit)
        rows = thaw(ref) if isinstance(ref, tuple | FrozenDict) else ref
        try:
            return data.load_dataset(rows, format=format, columns=columns, formats=self._formats(), **wanted)
        except DataError as error:
            self._add_plugins_out(error)
            raise

    def data_format(self, name: str) -> ComponentRef | None:
        """The component behind the name of a data format, or None for one of tunekit's own.

        Raises:
            DataError: if nothing provides it.
            AmbiguousNameError: if several distributions provide the short name.
        """
        from tunekit.data.load import find_format

        try:
            form = find_format(name, self._formats())
        except DataError as error:
            self._add_plugins_out(error)
            raise
        return self.registry.find("format", form.id).component if form.provider else None

    def _formats(self) -> tuple[Format, ...]:
        """The plugins' data formats. None of their code is imported before a row is converted."""
        from tunekit.data.formats import Format

        found: list[Format] = []
        for entry in self.components("format"):
            spec = entry.spec
            assert isinstance(spec, DataFormatSpec)
            found.append(
                Format(
                    name=spec.name,
                    schema=spec.schema,
                    columns=tuple(spec.columns),
                    optional=tuple(spec.optional),
                    without=tuple(spec.without),
                    summary=spec.summary,
                    provider=entry.component.provider,
                    version=entry.component.version,
                    convert=self._converter(entry.component),
                )
            )
        return tuple(found)

    def _converter(self, component: ComponentRef) -> Callable[[dict[str, Any]], dict[str, Any]]:
        target: Callable[[dict[str, Any]], dict[str, Any]] | None = None

        def convert(row: dict[str, Any]) -> dict[str, Any]:
            nonlocal target
            if target is None:
                target = self.load(component)
            return target(row)

        return convert

    def _add_plugins_out(self, error: DataError) -> None:
        """Name the plugins that could not be loaded, if one of them may bring the format that is missed."""
        out = self.registry.not_loaded()
        if error.code in ("unknown-format", "unknown-columns") and out:
            lines = [f"plugin {record.label} is {record.state}: {record.reason}" for record in out]
            error.found = "\n         ".join(filter(None, (error.found, *lines)))
            error.details["not_loaded"] = [record.facts() for record in out]

    @staticmethod
    def _no_reading(name: str, format: str | None, columns: Mapping[str, str] | None) -> None:
        if format is not None or columns:
            raise DataError(
                f"{name} has canonical rows; format= and columns= do not apply to it.",
                code="canonical-data",
                fix="leave them out",
            )


def _guarded(rows: Iterator[Any], component: ComponentRef) -> Iterator[Any]:
    """The rows that a plugin makes one by one; what goes wrong on the way is its error."""
    number = 0
    try:
        for row in rows:
            number += 1
            yield row
    except TunekitError:
        raise
    except Exception as error:
        raise PluginError(
            f"The data set {component.label} fails after row {number}.",
            code="component-failed",
            asked=component.target,
            found=f"{type(error).__name__}: {error}",
            fix=f"update {component.provider}, or report it to its authors; details['traceback'] has the traceback",
            details={"component": component.id, "row": number, "traceback": traceback.format_exc()},
        ) from error


def _gives_data(value: Any) -> bool:
    """Whether it is no data set itself, but gives one of a shape that a step takes, as a feedback store does."""
    return callable(getattr(value, "as_dataset", None)) and not isinstance(value, type)


def _wrong_answer(what: str, answer: Any, due: str, who: str) -> PluginError:
    return PluginError(
        f"A plugin answered for {what} with {answer!r:.80}, which is no {due}.",
        code="wrong-answer",
        found=f"asked were: {who}",
        fix=f"return a {due}, or None for what the plugin does not know; see tunekit.plugins and tunekit.data",
    )


def _may_be_name(ref: str) -> bool:
    return re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[a-z0-9][a-z0-9._-]*", ref) is not None


def _object(ref: str, objects: Mapping[str, Any]) -> Any:
    try:
        return objects[ref]
    except KeyError:
        raise DataError(
            "The plan refers to an object in memory that is not here.",
            code="lost-object",
            asked=ref,
            fix="plans with objects in memory run from the pipeline that was given them; pass a path to store the plan",
        ) from None


_default: Session | None = None
_default_lock = threading.Lock()


def default_session() -> Session:
    """The session used when none is named: the installed plugins and the environment's settings. Made on first use."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Session()
    return _default
