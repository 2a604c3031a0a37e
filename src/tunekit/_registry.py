"""Which component stands behind a name, and who provides it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from tunekit.errors import AmbiguousNameError, UnknownNameError, nearest
from tunekit.plan import PIPELINE_NAMES, TRAINING_KINDS, ComponentRef
from tunekit.plugins.specs import BenchmarkSpec, DataFormatSpec, Spec, StepSpec, TrainerSpec
from tunekit.settings import canonical_name

__all__ = ["Entry", "PluginRecord", "Registry", "entry_key", "spec_problem", "spec_stage", "spec_verb"]

VERB = re.compile(r"[a-z][a-z0-9_]*")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

# How each kind is called in front of people, and how a name of it is typed.
WORDS = {
    "adapter": ("adapter", 'adapter("{}")'),
    "quantizer": ("quantization method", 'quantize(..., method="{}")'),
    "benchmark": ("benchmark", 'evaluate(["{}"])'),
    "reward": ("reward", 'align(..., reward="{}")'),
    "exporter": ("export format", 'export("{}")'),
    "tracker": ("tracker", 'track("{}")'),
    "launcher": ("launcher", 'launch("{}")'),
    "model": ("model", 'Pipeline(model="{}")'),
    "dataset": ("data set", 'data="{}"'),
    "format": ("data format", 'format="{}"'),
    "step": ("step", 'step("{}")'),
}

CHOICES: tuple[tuple[type[Spec], str, tuple[str, ...]], ...] = (
    (StepSpec, "makes", ("model", "report")),
    (TrainerSpec, "rewards", ("", "required", "optional")),
    (BenchmarkSpec, "needs", ("loglikelihood", "generation", "perplexity")),
)
"""Fields with few values: the spec, its field, and what it may be."""


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """One plugin that was found, and what became of it."""

    name: str
    """Name of the entry point; for a plugin handed to the session, the name of the module or class."""
    provider: str
    """Distribution that brings it; ``inline`` for one handed to the session."""
    version: str
    """Version of that distribution; empty for ``inline``."""
    api_version: int | None = None
    """Version of the plugin API that it states; None if it never got that far."""
    state: str
    """``loaded``, ``broken``, ``incompatible`` or ``disabled``."""
    reason: str = ""
    """Why it is not loaded, in one sentence."""
    traceback: str = ""
    """Python traceback of the failure, for a bug report."""
    problems: tuple[str, ...] = ()
    """What is odd about a plugin that works otherwise, such as a hook that this tunekit does not have."""

    @property
    def label(self) -> str:
        """``acme-rl 1.2``."""
        return f"{self.provider} {self.version}".strip() if self.provider != "inline" else f"{self.name} (inline)"

    def facts(self) -> dict[str, str]:
        """What an error says of it, as JSON types."""
        return {
            "plugin": self.name,
            "provider": self.provider,
            "version": self.version,
            "state": self.state,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A component that can be used."""

    component: ComponentRef
    spec: Spec
    plugin: str = ""
    """Name of the plugin (entry point) that registered it."""
    value: Any = field(default=None, repr=False)
    """The class or function itself, if it was decorated; None: it is imported by the component's target."""
    options: type[Any] | None = field(default=None, repr=False)
    """The options model itself, if the decorator was given one; None: it is imported by ``spec.options``, if any."""
    preview: Any = field(default=None, repr=False)
    """The preview callable itself, if the decorator was given one; None: it is imported by ``spec.preview``, if any."""


def spec_stage(spec: Spec) -> str:
    """The stage of a trainer; empty for every other kind."""
    return spec.stage if isinstance(spec, TrainerSpec) else ""


def spec_verb(spec: Spec) -> str:
    """The method that a step spec names; empty for every other kind."""
    return spec.verb if isinstance(spec, StepSpec) else ""


def spec_problem(spec: object, expected: type[Spec], *, objects: Collection[str] = (), made_for: str = "") -> str:
    """What is wrong with a record that a hook returned; empty if nothing.

    ``objects``: which of target, options and preview are at hand, so that their names need not be import strings.
    ``made_for``: the user's name that it was made for; it may be called as freely then.
    """
    if not isinstance(spec, expected):
        return f"returned {spec!r}, which is no {expected.__name__}"
    if not isinstance(spec.name, str) or not (spec.name.strip() if made_for else NAME.fullmatch(spec.name)):
        return f"the name {spec.name!r} is not made of lower case letters, digits, '-', '_' and '.'"
    if isinstance(spec, BenchmarkSpec) and spec.members:
        if spec.target:
            return f"{spec.name!r} has both a target and members; a set of benchmarks has members only"
    elif "target" not in objects and not _is_import_string(spec.target):
        return f"the target {spec.target!r} of {spec.name!r} is not of the form 'pkg.module:attribute'"
    if "options" not in objects and spec.options is not None and not _is_import_string(spec.options):
        return f"the options {spec.options!r} of {spec.name!r} are not of the form 'pkg.module:attribute'"
    preview = spec.preview if isinstance(spec, TrainerSpec | StepSpec) and "preview" not in objects else ""
    if preview != "" and not _is_import_string(preview):
        return f"the preview {preview!r} of {spec.name!r} is not of the form 'pkg.module:attribute'"
    for name in _tuple_fields(type(spec)):
        value = getattr(spec, name)
        if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
            hint = f"; write ({value!r},)" if isinstance(value, str) else ""
            return f"{name} of {spec.name!r} is {value!r}, not a tuple of strings{hint}"
    if isinstance(spec, TrainerSpec) and spec.stage not in TRAINING_KINDS:
        close = nearest(str(spec.stage), TRAINING_KINDS, limit=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"the stage {spec.stage!r} of {spec.name!r} is none of {', '.join(TRAINING_KINDS)}{hint}"
    for kind, name, allowed in CHOICES:
        if isinstance(spec, kind) and getattr(spec, name) not in allowed:
            return f"{name} of {spec.name!r} is {getattr(spec, name)!r}, none of {', '.join(allowed)}"
    if spec.kind == "step" and spec.name in (*TRAINING_KINDS, "quantize", "export"):
        return f"the step name {spec.name!r} belongs to tunekit"
    if isinstance(spec, StepSpec) and spec.verb != "":
        return _verb_problem(spec.name, spec.verb)
    if isinstance(spec, DataFormatSpec):
        return _format_problem(spec)
    return ""


def _is_import_string(value: object) -> bool:
    return isinstance(value, str) and TARGET.fullmatch(value) is not None


_TUPLE_FIELDS: dict[type[Spec], tuple[str, ...]] = {}


def _tuple_fields(spec: type[Spec]) -> tuple[str, ...]:
    if spec not in _TUPLE_FIELDS:
        _TUPLE_FIELDS[spec] = tuple(item.name for item in fields(spec) if item.type == "tuple[str, ...]")
    return _TUPLE_FIELDS[spec]


def _format_problem(spec: DataFormatSpec) -> str:
    from tunekit.data.schemas import SCHEMAS

    if spec.schema not in SCHEMAS:
        close = nearest(str(spec.schema), SCHEMAS, limit=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"the schema {spec.schema!r} of {spec.name!r} is none of {', '.join(SCHEMAS)}{hint}"
    if not spec.columns:
        return f"{spec.name!r} names no columns, so it would fit all data"
    both = sorted(set(spec.without) & {*spec.columns, *spec.optional})
    if both:
        return f"{spec.name!r} both uses and rules out the column {both[0]!r}"
    if spec.options is not None:
        return f"the data format {spec.name!r} has options, but a format takes none"
    return ""


def _verb_problem(name: str, verb: object) -> str:
    if not isinstance(verb, str) or not VERB.fullmatch(verb) or keyword.iskeyword(verb):
        return f"the verb {verb!r} of {name!r} is no method name: lower case letters, digits and '_', no keyword"
    if verb in PIPELINE_NAMES:
        return f"the verb {verb!r} of {name!r} belongs to tunekit; Pipeline.{verb} cannot be replaced"
    return ""


@dataclass(frozen=True)
class Registry:
    """Everything that the plugins of a session offer. Immutable."""

    entries: tuple[Entry, ...] = ()
    records: tuple[PluginRecord, ...] = ()
    _by_key: dict[tuple[str, str, str], list[Entry]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_key: dict[tuple[str, str, str], list[Entry]] = {}
        for entry in self.entries:
            component = entry.component
            by_key.setdefault((component.kind, component.stage, component.name), []).append(entry)
        object.__setattr__(self, "_by_key", by_key)

    def components(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Every component, or those of one kind, sorted by kind, stage, name and provider."""
        found = [entry for entry in self.entries if kind is None or entry.component.kind == kind]
        return tuple(
            sorted(found, key=lambda e: (e.component.kind, e.component.stage, e.component.name, e.component.provider))
        )

    def plugins(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, whether it could be loaded or not."""
        return self.records

    def not_loaded(self) -> list[PluginRecord]:
        """The plugins that were found and are not used: broken, incompatible or disabled."""
        return [record for record in self.records if record.state != "loaded"]

    def names(self, kind: str, stage: str = "") -> tuple[str, ...]:
        """Short names of one kind, sorted."""
        return tuple(sorted({key[2] for key in self._by_key if key[:2] == (kind, stage)}))

    def get(self, kind: str, name: str, stage: str = "") -> Entry | None:
        """The component, or None if no loaded plugin provides it.

        Args:
            kind: such as ``trainer``.
            name: the short name, or ``dist/name``.
            stage: stage of a trainer.

        Raises:
            AmbiguousNameError: if several distributions provide the short name.
        """
        provider, _, short = name.rpartition("/")
        found = self._by_key.get((kind, stage, short), [])
        if provider:
            wanted = canonical_name(provider)
            return next((e for e in found if canonical_name(e.component.provider) == wanted), None)
        if len(found) > 1:
            spellings = [entry.component.id for entry in found]
            word, typed = self._words(kind, stage)
            raise AmbiguousNameError(
                f"{len(found)} installed distributions provide the {word} {name!r}.",
                asked=name,
                found=", ".join(f"{e.component.id} ({e.component.version})" for e in found),
                fix="write " + " or ".join(typed.format(spelling) for spelling in spellings),
                details={"kind": kind, "stage": stage, "spellings": spellings},
            )
        return found[0] if found else None

    def find(self, kind: str, name: str, stage: str = "") -> Entry:
        """The component. Arguments as in :meth:`get`.

        Raises:
            UnknownNameError: if no loaded plugin provides it; it names what exists, the nearest names, and the plugins
                that are installed but could not be loaded.
            AmbiguousNameError: if several distributions provide the short name.
        """
        entry = self.get(kind, name, stage)
        if entry is None:
            raise self.unknown(kind, name, stage)
        return entry

    def unknown(self, kind: str, name: str, stage: str = "") -> UnknownNameError:
        """The error for a name that nobody provides."""
        word, typed = self._words(kind, stage)
        provider, _, short = name.rpartition("/")
        known = self.names(kind, stage)
        others = self._by_key.get((kind, stage, short), []) if provider else []
        if others:
            suggestions: tuple[str, ...] = tuple(entry.component.id for entry in others)
        else:
            suggestions = nearest(short, known)
        elsewhere = sorted({e.component.stage for e in self.entries if e.component.kind == kind} - {stage, ""})
        belongs = [other for other in elsewhere if (kind, other, short) in self._by_key]
        out = self.not_loaded()
        parts = ["known: " + (", ".join(known) if known else f"no plugin provides any {word}")]
        if belongs:
            parts.append(f"{short!r} is a method of {', '.join(belongs)}")
        parts += [f"plugin {r.label} is {r.state}: {r.reason}" for r in out]
        parts += [f"plugin {r.label}: {problem}" for r in self.records for problem in r.problems]
        if suggestions:
            fix = f"type {typed.format(suggestions[0])}"
        elif not known:
            fix = "pip install 'tunekit[standard]'"
        else:
            fix = "use one of the known names, or install a plugin that provides it (`tunekit plugins` lists them)"
        return UnknownNameError(
            f"There is no {word} {name!r}.",
            code=f"unknown-{'method' if kind in ('trainer', 'quantizer') else kind}",
            asked=name,
            found="\n         ".join(parts),
            suggestions=suggestions,
            fix=fix,
            details={
                "kind": kind,
                "stage": stage,
                "known": list(known),
                "not_loaded": [r.facts() for r in out],
            },
        )

    @staticmethod
    def _words(kind: str, stage: str) -> tuple[str, str]:
        if kind == "trainer":
            return f"{stage} method", f'{stage}(method="{{}}")'
        return WORDS.get(kind, (kind, "{}"))


def entry_key(entry: Entry) -> tuple[str, str, str, str]:
    """What only one component may have: kind, stage, name, and distribution."""
    component = entry.component
    return component.kind, component.stage, component.name, canonical_name(component.provider)
