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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from tunekit._hook_guards import Guards
from tunekit._loading import (
    decorated_in,
    entry_points,
    functions_in,
    hook_arguments,
    no_plugin,
    own_version,
    owners,
    refuse_twins,
)
from tunekit._registry import Entry, PluginRecord, Registry, entry_key, spec_problem, spec_stage
from tunekit.errors import PluginError, nearest
from tunekit.plan import ComponentRef
from tunekit.plugins.decorators import code_version, decorations, is_decorated
from tunekit.plugins.specs import (
    API_VERSION,
    AdapterSpec,
    BenchmarkSpec,
    DataFormatSpec,
    DatasetSpec,
    ExporterSpec,
    ModelSpec,
    QuantizerSpec,
    RewardSpec,
    Spec,
    StepSpec,
    TrackerSpec,
    TrainerSpec,
)
from tunekit.settings import Settings

if TYPE_CHECKING:
    import pluggy

    from tunekit.artifacts import Artifact
    from tunekit.context import StepContext
    from tunekit.data import Dataset
    from tunekit.events import Event
    from tunekit.plan import Plan, ResolvedStep
    from tunekit.plugins.protocols import Finding, ModelSource

__all__ = ["SUPPORTED_API_VERSIONS", "Hooks"]

CORE = "tunekit._core_plugin"
INLINE = "inline"
SUPPORTED_API_VERSIONS = (API_VERSION,)

REGISTRATION: dict[str, type[Spec]] = {
    "tunekit_trainers": TrainerSpec,
    "tunekit_adapters": AdapterSpec,
    "tunekit_quantizers": QuantizerSpec,
    "tunekit_benchmarks": BenchmarkSpec,
    "tunekit_rewards": RewardSpec,
    "tunekit_exporters": ExporterSpec,
    "tunekit_trackers": TrackerSpec,
    "tunekit_models": ModelSpec,
    "tunekit_datasets": DatasetSpec,
    "tunekit_formats": DataFormatSpec,
    "tunekit_steps": StepSpec,
}

log = logging.getLogger("tunekit")


_Impls = dict[str, tuple[Callable[..., Any], dict[str, Any]]]
"""Hook to the function that implements it, and the options of its mark."""


_Entries = dict[tuple[str, str, str, str], Entry]
"""Entries by what may be there once."""


@dataclass
class _Loaded:
    record: PluginRecord
    carrier: types.ModuleType | None
    """What pluggy was given; None if it has no hook besides registration."""
    impls: dict[str, Callable[..., Any]]
    """Registration hooks."""
    decorated: list[Any]
    """Decorated classes and functions."""


class _Refused(Exception):
    """A plugin that is left out, with the reason."""


class Hooks:
    """The plugins of one session behind typed calls. Loaded on first use, once, under a lock."""

    def __init__(self, plugins: Sequence[Any] = (), *, autoload: bool = True, settings: Settings | None = None) -> None:
        self._plugins = tuple({id(plugin): plugin for plugin in plugins}.values())
        refuse_twins(self._plugins)
        self._autoload = autoload
        self._settings = settings or Settings()
        self._lock = threading.RLock()
        self._loading = False
        self._pm: pluggy.PluginManager | None = None
        self._registry: Registry | None = None
        self._loaded: list[_Loaded] = []
        self._records: list[PluginRecord] = []
        self._guards = Guards()

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

    def resolve_benchmark(self, ref: str) -> Entry | None:
        """The first plugin's answer to the name of a benchmark that is not registered. A plugin that fails is reported
        once and passed over."""
        hook = self._ready().hook.tunekit_resolve_benchmark
        asked = [impl.plugin for impl in hook.get_hookimpls()]
        for plugin in reversed(asked):
            others = [other for other in asked if other is not plugin]
            spec = self._ready().subset_hook_caller("tunekit_resolve_benchmark", remove_plugins=others)(ref=ref)
            if spec is None:
                continue
            record = next(loaded.record for loaded in self._loaded if loaded.carrier is plugin)
            problem = spec_problem(spec, BenchmarkSpec, made_for=ref)
            if problem:
                raise PluginError(
                    f"A plugin answers to the benchmark {ref!r} with what is none.",
                    code="wrong-answer",
                    found=f"{record.label}: {problem}",
                    fix=f"update {record.provider}, or report it to its authors",
                )
            component = ComponentRef(
                kind="benchmark", name=ref, provider=record.provider, version=record.version, target=spec.target
            )
            return Entry(component=component, spec=spec, plugin=record.name)
        return None

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

    def implementers(self, hook: str) -> list[str]:
        """The plugins besides tunekit that implement a hook, as ``provider:name``."""
        names = [impl.plugin_name for impl in getattr(self._ready().hook, hook).get_hookimpls()]
        return sorted(name for name in names if name != "tunekit:tunekit")

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
        self._admit("tunekit", "tunekit", own_version(), lambda: importlib.import_module(CORE))
        inline = {id(plugin) for plugin in self._plugins}
        points = entry_points() if self._autoload or any(inspect.ismodule(p) for p in self._plugins) else []
        if self._autoload:
            for name, provider, version, _, load in points:
                reason = self._settings.refusal(name, provider)
                if reason:
                    record = PluginRecord(name=name, provider=provider, version=version, state="disabled")
                    self._records.append(replace(record, reason=reason))
                else:
                    self._admit(name, provider, version, load, skip=inline)
        known_modules = owners(points)
        for plugin in self._plugins:
            fallback = getattr(plugin, "__name__", type(plugin).__name__)
            known = known_modules.get(fallback) if inspect.ismodule(plugin) else None
            name, provider, version = known or (str(fallback), INLINE, "")
            self._admit(name, provider, version, functools.partial(_same, plugin))
        # Of those that ask to be last pluggy calls the newest last. tunekit's own comes after a plugin's trylast.
        core = self._loaded[0].carrier
        own_name = pm.get_name(core)
        pm.unregister(core)
        pm.register(core, own_name)

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
            impls, decorated, problems = self._look_at(plugin, inline=provider == INLINE)
            problems += self._warn_outdated(impls)
            if problems:
                record = replace(record, problems=tuple(problems))
            for problem in problems:
                log.warning("plugin %s: %s", record.label, problem)
            carrier = self._carrier(record, impls)
            functions = {hook: pair[0] for hook, pair in impls.items() if hook in REGISTRATION}
            self._loaded.append(_Loaded(record, carrier, functions, decorated))
            self._records.append(record)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  (a plugin may even call sys.exit while it is imported)
            self._records.append(_broken(record, error))
            log.warning("plugin %s is left out: %s", record.label, self._records[-1].reason)

    def _carrier(self, record: PluginRecord, impls: _Impls) -> types.ModuleType | None:
        """Give pluggy the hooks of a plugin. Registration hooks are asked one by one in :meth:`_collect` instead, so
        that pluggy cannot mix their failures."""
        called = {hook: pair for hook, pair in impls.items() if hook not in REGISTRATION}
        if not called:
            return None
        carrier = types.ModuleType(record.name)
        for hook, (function, opts) in called.items():
            setattr(carrier, hook, self._guards.guarded(record, hook, function, opts))
        self._register(carrier, f"{record.provider}:{record.name}")
        return carrier

    def _look_at(self, plugin: Any, *, inline: bool) -> tuple[_Impls, list[Any], list[str]]:
        """The hook implementations of a plugin, what is decorated in it, and what is odd about it."""
        if is_decorated(plugin):
            return {}, [plugin], []
        problem = no_plugin(plugin)
        if problem:
            raise _Refused(problem)
        impls: _Impls = {}
        problems: list[str] = []
        for name, function in functions_in(plugin):
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
            if hook in impls:
                other = impls[hook][0].__name__
                raise _Refused(f"{other} and {name} both implement {hook}; a plugin implements a hook once")
            impls[hook] = (function, opts)
        return impls, list(decorated_in(plugin, own=not inline)), problems

    def _warn_outdated(self, impls: _Impls) -> list[str]:
        """Warn of implementations of hooks, or of hook arguments, that will go; at their line. Returns the texts."""
        from tunekit._deprecated import impl_warnings

        found: list[str] = []
        for hook, (function, _) in impls.items():
            options = self._spec_options[hook]
            if not options.get("warn_on_impl") and not options.get("warn_on_impl_args"):
                continue
            for warning in impl_warnings(options, inspect.signature(function).parameters):
                code = inspect.unwrap(getattr(function, "__func__", function)).__code__
                warnings.warn_explicit(warning, None, code.co_filename, code.co_firstlineno, module=function.__module__)
                found.append(str(warning))
        return found

    def _check_signature(self, hook: str, function: Callable[..., Any]) -> None:
        plain = hook_arguments(function)
        if plain is not None and set(plain) <= set(self._specs[hook]):
            return
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

    def _collect(self) -> list[Entry]:
        """Ask each plugin for its specs, one hook implementation at a time."""
        entries: _Entries = {}
        taken: set[int] = set()  # a decorated thing may be handed in by itself and in its module
        for loaded in self._loaded:
            record = loaded.record
            mine: _Entries = {}
            try:
                for hook, expected in REGISTRATION.items():
                    function = loaded.impls.get(hook)
                    if function is not None:
                        self._collect_one(record, hook, function, expected, entries, mine)
                for thing in loaded.decorated:
                    if id(thing) not in taken:
                        self._collect_decorated(record, thing, entries, mine)
            except (Exception, SystemExit) as error:  # noqa: BLE001
                if loaded.carrier is not None:
                    assert self._pm is not None
                    self._pm.unregister(loaded.carrier)
                index = next(i for i, one in enumerate(self._records) if one is record)
                self._records[index] = _broken(record, error)
                log.warning("plugin %s is left out: %s", record.label, self._records[index].reason)
                continue
            entries |= mine
            taken.update(id(entry.value) for entry in mine.values() if entry.value is not None)
        return list(entries.values())

    def _collect_one(
        self,
        record: PluginRecord,
        hook: str,
        function: Callable[..., Any],
        expected: type[Spec],
        others: _Entries,
        mine: _Entries,
    ) -> None:
        answer = function()
        if isinstance(answer, str | Spec) or not isinstance(answer, Iterable):
            raise _Refused(f"{hook} returned {answer!r}, not a list of {expected.__name__}")
        for spec in answer:
            problem = spec_problem(spec, expected)
            if problem:
                raise _Refused(f"{hook}: {problem}")
            entry = Entry(component=_ref(record, spec, record.version), spec=spec, plugin=record.name)
            self._add(entry, hook, others, mine)

    def _collect_decorated(self, record: PluginRecord, thing: Any, others: _Entries, mine: _Entries) -> None:
        for decoration in decorations(thing):
            spec = decoration.spec
            at_hand = [
                "target",
                *(["options"] if decoration.options else []),
                *(["preview"] if decoration.preview else []),
            ]
            problem = spec_problem(spec, type(spec), objects=at_hand)
            if problem:
                raise _Refused(f"{thing.__qualname__}: {problem}")
            version = code_version(thing, decoration) if record.provider == INLINE else record.version
            component = _ref(record, spec, version)
            entry = Entry(
                component=component,
                spec=spec,
                plugin=record.name,
                value=thing,
                options=decoration.options,
                preview=decoration.preview,
            )
            self._add(entry, thing.__qualname__, others, mine)

    def _add(self, entry: Entry, where: str, others: _Entries, mine: _Entries) -> None:
        key = entry_key(entry)
        if key in mine or key in others:
            component = entry.component
            stage = f" for the stage {component.stage}" if component.stage else ""
            raise _Refused(
                f"{where}: {component.provider} provides the {component.kind} {component.name!r}{stage} twice"
            )
        mine[key] = entry


def _ref(record: PluginRecord, spec: Spec, version: str) -> ComponentRef:
    return ComponentRef(
        kind=spec.kind,
        name=spec.name,
        provider=record.provider,
        version=version,
        target=spec.target,
        stage=spec_stage(spec),
    )


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
