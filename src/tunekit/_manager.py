"""The one place that talks to pluggy.

Plugins come from strangers, so nothing of theirs runs unguarded: each entry point is loaded in its own ``try``, what it
registers is looked at before it counts, and a plugin that fails is recorded and left out while everything else works.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from tunekit._registry import Entry, PluginRecord, Registry, duplicate_name, spec_problem, spec_stage
from tunekit.errors import PluginError, TunekitError, nearest
from tunekit.plan import ComponentRef
from tunekit.plugins.specs import (
    API_VERSION,
    AdapterSpec,
    BenchmarkSpec,
    DataFormatSpec,
    DatasetSpec,
    ExporterSpec,
    ModelSpec,
    QuantizerSpec,
    Spec,
    StepSpec,
    TrackerSpec,
    TrainerSpec,
)
from tunekit.settings import Settings, canonical_name

if TYPE_CHECKING:
    import pluggy

    from tunekit.artifacts import Artifact
    from tunekit.context import StepContext
    from tunekit.data import Dataset
    from tunekit.events import Event
    from tunekit.plan import Plan, ResolvedStep
    from tunekit.plugins.protocols import Finding, ModelSource

__all__ = ["SUPPORTED_API_VERSIONS", "Hooks"]

GROUP = "tunekit"
CORE = "tunekit._core_plugin"
SUPPORTED_API_VERSIONS = (API_VERSION,)

REGISTRATION: dict[str, type[Spec]] = {
    "tunekit_trainers": TrainerSpec,
    "tunekit_adapters": AdapterSpec,
    "tunekit_quantizers": QuantizerSpec,
    "tunekit_benchmarks": BenchmarkSpec,
    "tunekit_exporters": ExporterSpec,
    "tunekit_trackers": TrackerSpec,
    "tunekit_models": ModelSpec,
    "tunekit_datasets": DatasetSpec,
    "tunekit_formats": DataFormatSpec,
    "tunekit_steps": StepSpec,
}

log = logging.getLogger("tunekit")


@dataclass
class _Loaded:
    record: PluginRecord
    carrier: types.ModuleType
    impls: dict[str, Callable[..., Any]]


class _Refused(Exception):
    """A plugin that is left out, with the reason."""


class Hooks:
    """The plugins of one session behind typed calls. Loaded on first use, once, under a lock."""

    def __init__(self, plugins: Sequence[Any] = (), *, autoload: bool = True, settings: Settings | None = None) -> None:
        self._plugins = tuple(plugins)
        self._autoload = autoload
        self._settings = settings or Settings()
        self._lock = threading.RLock()
        self._loading = False
        self._pm: pluggy.PluginManager | None = None
        self._registry: Registry | None = None
        self._loaded: list[_Loaded] = []
        self._records: list[PluginRecord] = []
        self._reported: set[tuple[str, str]] = set()

    # Calls: one per hook, so that no other module touches pluggy.

    def registry(self) -> Registry:
        """What all plugins offer."""
        self._ready()
        assert self._registry is not None
        return self._registry

    def resolve_model(self, ref: str) -> ModelSource | None:
        """The first plugin's answer to a model reference. A plugin that fails is reported once and passed over."""
        return cast("ModelSource | None", self._call("tunekit_resolve_model", ref=ref))

    def resolve_dataset(self, ref: Any) -> Dataset | None:
        """The first plugin's answer to a data reference. A plugin that fails is reported once and passed over."""
        return cast("Dataset | None", self._call("tunekit_resolve_dataset", ref=ref))

    def check_plan(self, plan: Plan) -> list[Finding]:
        """All plugins' findings about a plan. A plugin that fails becomes a warning."""
        found: list[Finding] = []
        for answer in self._call("tunekit_check_plan", plan=plan):
            found.extend(answer)
        return found

    def run_step(self, step: ResolvedStep, ctx: StepContext) -> Artifact | None:
        """Run a step. What a component raises comes out unchanged."""
        return cast("Artifact | None", self._call("tunekit_run_step", step=step, ctx=ctx))

    def event(self, event: Event) -> None:
        """Tell every plugin what happened. A plugin that fails is reported once."""
        self._call("tunekit_event", event=event)

    # Loading.

    def _call(self, hook: str, **arguments: Any) -> Any:
        return getattr(self._ready().hook, hook)(**arguments)

    def _ready(self) -> pluggy.PluginManager:
        if self._registry is not None and self._pm is not None:
            return self._pm
        with self._lock:
            if self._loading:
                raise PluginError(
                    "A plugin asked for the session's components while plugins were being loaded.",
                    code="plugin-reentry",
                    fix="use sessions inside functions of the plugin, not while its module is imported",
                )
            if self._registry is None:
                self._loading = True
                try:
                    self._load()
                finally:
                    self._loading = False
        assert self._pm is not None
        return self._pm

    def _load(self) -> None:
        import pluggy

        from tunekit.plugins import hookspecs

        class Manager(pluggy.PluginManager):
            # pluggy would warn of hooks that will go at the line of our guard; _warn_outdated knows the plugin's own.
            def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
                opts = super().parse_hookspec_opts(module_or_class, name)
                return opts and {**opts, "warn_on_impl": None, "warn_on_impl_args": None}

        pm: pluggy.PluginManager = Manager(hookspecs.PROJECT)
        pm.add_hookspecs(hookspecs)
        self._pm = pm
        self._spec_options = {
            name: getattr(function, f"{hookspecs.PROJECT}_spec", {}) for name, function in vars(hookspecs).items()
        }
        self._specs = {
            name: tuple(inspect.signature(function).parameters)
            for name, function in vars(hookspecs).items()
            if name.startswith("tunekit_") and inspect.isfunction(function)
        }
        self._loaded, self._records = [], []

        # pluggy calls the newest plugin first, so tunekit's own comes last and what the caller hands in comes first.
        self._admit("tunekit", "tunekit", _own_version(), lambda: importlib.import_module(CORE))
        inline = {id(plugin) for plugin in self._plugins}
        points = _entry_points() if self._autoload or any(inspect.ismodule(p) for p in self._plugins) else []
        if self._autoload:
            for name, provider, version, load in points:
                if self._settings.disables(name, provider):
                    self._records.append(
                        PluginRecord(
                            name=name,
                            provider=provider,
                            version=version,
                            state="disabled",
                            reason="listed in TUNEKIT_DISABLE_PLUGINS",
                        )
                    )
                else:
                    self._admit(name, provider, version, load, skip=inline)
        owners = _owners(points)
        for plugin in self._plugins:
            fallback = getattr(plugin, "__name__", type(plugin).__name__)
            known = owners.get(fallback) if inspect.ismodule(plugin) else None
            name, provider, version = known or (str(fallback), "inline", "")
            self._admit(name, provider, version, functools.partial(_same, plugin))

        entries = self._collect()
        self._registry = Registry(tuple(entries), tuple(self._records))

    def _admit(
        self,
        name: str,
        provider: str,
        version: str,
        load: Callable[[], Any],
        skip: Iterable[int] = (),
    ) -> None:
        """Load one plugin and hand its hooks to pluggy, or record why not."""
        record = PluginRecord(name=name, provider=provider, version=version, state="loaded")
        try:
            plugin = load()
            if id(plugin) in skip:
                return
            stated = inspect.getattr_static(plugin, "api_version", 1)
            if not isinstance(stated, int) or isinstance(stated, bool):
                raise _Refused(f"api_version is {stated!r}, not a whole number")
            record = replace(record, api_version=stated)
            if stated not in SUPPORTED_API_VERSIONS:
                age = "a newer" if stated > max(SUPPORTED_API_VERSIONS) else "an older"
                speaks = ", ".join(map(str, SUPPORTED_API_VERSIONS))
                self._records.append(
                    replace(
                        record,
                        state="incompatible",
                        reason=f"it is written for plugin API {stated}, this tunekit speaks {speaks}; "
                        f"it needs {age} tunekit or another release of itself",
                    )
                )
                return
            impls, problems = self._look_at(plugin)
            problems += self._warn_outdated(impls)
            record = replace(record, problems=tuple(problems))
            for problem in problems:
                log.warning("plugin %s: %s", record.label, problem)
            carrier = types.ModuleType(name)
            for hook, (function, opts) in impls.items():
                if hook in REGISTRATION:
                    continue  # asked one by one in _collect, so that pluggy cannot mix their failures
                wraps = opts.get("wrapper") or opts.get("hookwrapper")
                guarded = function if wraps else self._guard(record, hook, function)
                marked = _marked(guarded, {**opts, "specname": hook})
                setattr(carrier, hook, marked)
            self._register(carrier, f"{provider}:{name}")
            functions = {hook: pair[0] for hook, pair in impls.items() if hook in REGISTRATION}
            self._loaded.append(_Loaded(record, carrier, functions))
            self._records.append(record)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  (a plugin may even call sys.exit while it is imported)
            self._records.append(_broken(record, error))
            log.warning("plugin %s is left out: %s", record.label, self._records[-1].reason)

    def _look_at(self, plugin: Any) -> tuple[dict[str, tuple[Callable[..., Any], dict[str, Any]]], list[str]]:
        """The hook implementations of a plugin, and what is odd about it.

        Only what stands in the module or class itself is looked at, never a lazy attribute: asking for those would
        import the plugin's heavy parts.
        """
        impls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
        problems: list[str] = []
        if inspect.isclass(plugin):
            raise _Refused(f"{plugin.__name__} is a class; hand in an instance, {plugin.__name__}()")
        for name, function in _functions(plugin):
            opts = getattr(function, "tunekit_impl", None)
            if not isinstance(opts, dict):
                if name in self._specs:
                    problems.append(f"{name} is not marked with @hookimpl, so it is never called")
                continue
            hook = opts.get("specname") or name
            if hook not in self._specs:
                close = nearest(hook, self._specs, limit=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                problems.append(f"{hook} is no hook of this tunekit, so it is never called{hint}")
                continue
            wraps = bool(opts.get("wrapper") or opts.get("hookwrapper"))
            if wraps and hook in REGISTRATION:
                raise _Refused(f"{hook} is a wrapper; registration hooks cannot be wrapped")
            if wraps and not inspect.isgeneratorfunction(function):
                raise _Refused(f"{hook} is marked as a wrapper but does not yield")
            self._check_signature(hook, function)
            impls[hook] = (function, opts)
        return impls, problems

    def _warn_outdated(self, impls: Mapping[str, tuple[Callable[..., Any], dict[str, Any]]]) -> list[str]:
        """Warn of implementations of hooks, or of hook arguments, that will go; at their line. Returns the texts."""
        from tunekit._deprecated import impl_warnings

        found: list[str] = []
        for hook, (function, _) in impls.items():
            for warning in impl_warnings(self._spec_options[hook], inspect.signature(function).parameters):
                code = inspect.unwrap(getattr(function, "__func__", function)).__code__
                warnings.warn_explicit(warning, None, code.co_filename, code.co_firstlineno, module=function.__module__)
                found.append(str(warning))
        return found

    def _check_signature(self, hook: str, function: Callable[..., Any]) -> None:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty:
                raise _Refused(
                    f"{hook} gives its argument {parameter.name!r} a default value; pluggy releases differ in what "
                    "that means, so no hook implementation may"
                )
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
                raise _Refused(f"{hook} takes {parameter}, but a hook implementation takes plain arguments only")
            if parameter.name not in self._specs[hook]:
                allowed = ", ".join(self._specs[hook]) or "none"
                raise _Refused(f"{hook} has no argument {parameter.name!r}; it has: {allowed}")

    def _register(self, carrier: types.ModuleType, name: str) -> None:
        assert self._pm is not None
        unique, count = name, 1
        while self._pm.has_plugin(unique):
            count += 1
            unique = f"{name}#{count}"
        try:
            self._pm.register(carrier, name=unique)
        except BaseException:
            # Older pluggy leaves the implementations that it had already added.
            if self._pm.get_name(carrier) is not None:
                self._pm.unregister(carrier)
            raise

    def _guard(self, record: PluginRecord, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The implementation, wrapped so that its failure stays its own. Steps are not guarded: their errors are the
        run's."""
        if hook == "tunekit_run_step":
            return _plain(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            try:
                answer = function(*arguments)
                return _findings(answer) if hook == "tunekit_check_plan" else answer
            except TunekitError:
                if hook == "tunekit_event":
                    self._report(record, hook)
                    return None
                if hook == "tunekit_check_plan":
                    return [self._failed(record, hook)]
                raise
            except (Exception, SystemExit):  # noqa: BLE001  (sys.exit in a plugin must not end the host)
                self._report(record, hook)
                return [self._failed(record, hook)] if hook == "tunekit_check_plan" else None

        return call

    def _report(self, record: PluginRecord, hook: str) -> None:
        key = (f"{record.provider}:{record.name}", hook)
        with self._lock:
            if key in self._reported:
                return
            self._reported.add(key)
        log.exception("plugin %s failed in %s; it is passed over (reported once)", record.label, hook)

    def _failed(self, record: PluginRecord, hook: str) -> Finding:
        import sys

        from tunekit.plugins.protocols import Finding

        error = sys.exc_info()[1]
        return Finding(
            level="warning",
            step=None,
            code="plugin-failed",
            message=f"Plugin {record.label} failed in {hook}: {type(error).__name__}: {error}.",
            fix=f"update or remove {record.provider}, or set TUNEKIT_DISABLE_PLUGINS={record.provider}",
        )

    def _collect(self) -> list[Entry]:
        """Ask each plugin for its specs, one hook implementation at a time."""
        entries: list[Entry] = []
        for loaded in self._loaded:
            record = loaded.record
            mine: list[Entry] = []
            try:
                for hook, expected in REGISTRATION.items():
                    function = loaded.impls.get(hook)
                    if function is not None:
                        self._collect_one(record, hook, function, expected, entries, mine)
            except Exception as error:  # noqa: BLE001
                assert self._pm is not None
                self._pm.unregister(loaded.carrier)
                index = self._records.index(record)
                self._records[index] = _broken(record, error)
                log.warning("plugin %s is left out: %s", record.label, self._records[index].reason)
                continue
            entries += mine
        return entries

    def _collect_one(
        self,
        record: PluginRecord,
        hook: str,
        function: Callable[..., Any],
        expected: type[Spec],
        others: list[Entry],
        mine: list[Entry],
    ) -> None:
        answer = function()
        if isinstance(answer, str | Spec) or not isinstance(answer, Iterable):
            raise _Refused(f"{hook} returned {answer!r}, not a list of {expected.__name__}")
        for spec in answer:
            problem = spec_problem(spec, expected)
            if problem:
                raise _Refused(f"{hook}: {problem}")
            entry = Entry(
                component=ComponentRef(
                    kind=spec.kind,
                    name=spec.name,
                    provider=record.provider,
                    version=record.version,
                    target=spec.target,
                    stage=spec_stage(spec),
                ),
                spec=spec,
                plugin=record.name,
            )
            if duplicate_name(mine, entry) or duplicate_name(others, entry):
                where = f" for the stage {entry.component.stage}" if entry.component.stage else ""
                raise _Refused(f"{hook}: {record.provider} provides the {spec.kind} {spec.name!r}{where} twice")
            mine.append(entry)


def _broken(record: PluginRecord, error: BaseException) -> PluginRecord:
    if isinstance(error, _Refused):
        return replace(record, state="broken", reason=str(error))
    return replace(
        record,
        state="broken",
        reason=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
    )


def _same(plugin: Any) -> Any:
    return plugin


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function around ``function``: pluggy releases differ in how they bind methods of instances."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def _marked(function: Callable[..., Any], opts: dict[str, Any]) -> Callable[..., Any]:
    if not inspect.isfunction(function):  # a bound method that wraps a hook: pluggy must see a generator function
        bound = function

        @functools.wraps(bound)
        def generator(*arguments: Any) -> Any:
            return (yield from bound(*arguments))

        function = generator
    function.__dict__["tunekit_impl"] = opts
    return function


def _functions(plugin: Any) -> list[tuple[str, Callable[..., Any]]]:
    """Functions that stand in a module, or methods of an object, found without running any descriptor."""
    found: list[tuple[str, Callable[..., Any]]] = []
    names = vars(plugin) if inspect.ismodule(plugin) else dir(plugin)
    for name in sorted(names):
        if name.startswith("__"):
            continue
        static = inspect.getattr_static(plugin, name, None)
        if isinstance(static, staticmethod | classmethod | types.MethodType) or inspect.isfunction(static):
            value = getattr(plugin, name)
            if callable(value):
                found.append((name, value))
    return found


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tunekit")
    except PackageNotFoundError:
        return ""


_Point = tuple[str, str, str, Any]


def _entry_points() -> list[_Point]:
    """Name, distribution, version and loader of every entry point of the group, in a fixed order."""
    from importlib.metadata import entry_points

    found: dict[tuple[str, str], _Point] = {}
    for point in entry_points(group=GROUP):
        try:
            provider = point.dist.name if point.dist else "unknown"
            version = point.dist.version if point.dist else ""
        except Exception:  # noqa: BLE001  (a damaged metadata folder)
            provider, version = "unknown", ""
        found.setdefault(
            (canonical_name(provider or "unknown"), point.name), (point.name, provider, version, point.load)
        )
    return [found[key] for key in sorted(found)]


def _owners(points: Iterable[_Point]) -> dict[str, tuple[str, str, str]]:
    """Module to name, distribution and version of its entry point, to know a module that is handed in."""
    return {load.__self__.value: (name, provider, version) for name, provider, version, load in points}


def _findings(answer: Any) -> list[Finding]:
    from tunekit.plugins.protocols import Finding

    found = list(answer or ())
    for item in found:
        if not isinstance(item, Finding):
            raise TypeError(f"returned {item!r}, which is no Finding")
    return found
