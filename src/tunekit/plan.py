"""The plan: what a pipeline means, as immutable plain data, before and after names are bound to components.

``Plan`` holds what the user said, and nothing else. ``ResolvedPlan`` is its lock file: every name bound to a component
with its version, every default filled in. Neither touches disk, plugins or heavy libraries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from tunekit._secrets import refuse_passwords
from tunekit.errors import OptionsError, PipelineError

__all__ = [
    "ADAPTED_KINDS",
    "DEFAULT_METHODS",
    "MAX_SEED",
    "MODEL_KINDS",
    "PIPELINE_NAMES",
    "SCHEMA",
    "STEP_KINDS",
    "TRAINING_KINDS",
    "AdapterPlan",
    "ComponentRef",
    "FrozenDict",
    "Plan",
    "ResolvedAdapter",
    "ResolvedPlan",
    "ResolvedReward",
    "ResolvedStep",
    "StepPlan",
    "canonical_json",
    "check_seed",
    "digest",
    "free_name",
    "freeze",
    "thaw",
]

SCHEMA = 1
"""Version of the plan file format."""

TRAINING_KINDS = ("pretrain", "post_pretrain", "sft", "reward", "align")
"""Steps that update weights."""

ADAPTED_KINDS = ("post_pretrain", "sft", "reward", "align")
"""Training steps that a pipeline-wide adapter setting applies to."""

MODEL_KINDS = (*TRAINING_KINDS, "merge", "quantize")
"""Steps whose artifact is a model."""

MAX_SEED = 2**32 - 1
"""Largest seed that every random number generator takes."""

STEP_KINDS = (*MODEL_KINDS, "evaluate", "export")
"""Every step kind of the core; others come from plugins through ``step(name)``."""

PIPELINE_NAMES = (
    *STEP_KINDS,
    *("adapter", "lora", "qlora", "seed", "step", "track"),
    *("check", "explain", "plan", "preview", "run", "start"),
    *("from_json", "from_plan", "from_yaml", "to_json", "to_yaml"),
)
"""What ``Pipeline`` has of its own; no plugin's verb may be called so."""


def check_seed(seed: Any) -> int:
    """``seed``, if it is one.

    Raises:
        PipelineError: if it is not a whole number from 0 to ``MAX_SEED``.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise PipelineError(
            f"A seed is a whole number from 0 to {MAX_SEED}.", code="seed", asked=repr(seed), fix="seed=0"
        )
    return seed


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed, hashes by content, and copies and pickles."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a plan cannot be changed; build a new one")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(canonical_json(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict:
        return self


DEFAULT_METHODS: Mapping[str, str] = FrozenDict(
    {
        "pretrain": "causal",
        "post_pretrain": "causal",
        "sft": "sft",
        "reward": "reward",
        "align": "dpo",
        "quantize": "gptq",
        "merge": "merge",
        "evaluate": "evaluate",
    }
)
"""Component name used when a step names no ``method``."""


def freeze(value: Any) -> Any:
    """A deep immutable copy of JSON-like data: mappings become read-only, sequences tuples.

    Raises:
        OptionsError: for a value that is not a JSON type.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise OptionsError(f"Option keys must be strings, found {key!r}.", code="option-key")
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    raise OptionsError(
        f"{value!r} of type {type(value).__name__} cannot be part of a plan.",
        code="option-type",
        fix="use text, numbers, true/false, None, lists or dicts",
    )


def thaw(value: Any) -> Any:
    """The inverse of :func:`freeze`: plain dicts and lists that ``json`` can write."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [thaw(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    import json

    return json.dumps(thaw(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of :func:`canonical_json`."""
    import hashlib

    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def free_name(kind: str, taken: Collection[str]) -> str:
    """Name of the next step of a kind that was not named: ``sft``, then ``sft-2``, ``sft-3`` ..."""
    base = kind.rpartition("/")[2]
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}-{count}"
    return name


@dataclass(frozen=True)
class AdapterPlan:
    """How fine-tuning steps update weights: an adapter name and its options. Made by ``lora(r=8)``."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_passwords({"adapter": self.name, **self.options}, of="an adapter")
        object.__setattr__(self, "options", freeze(self.options))

    def __hash__(self) -> int:
        return hash((self.name, canonical_json(self.options)))

    def to_data(self) -> dict[str, Any]:
        """``{"name": ..., **options}``."""
        return {"name": self.name, **thaw(self.options)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> AdapterPlan:
        """Inverse of :meth:`to_data`.

        Raises:
            OptionsError: if ``name`` is missing or is not text.
        """
        rest = dict(data)
        name = rest.pop("name", None)
        if not isinstance(name, str) or not name:
            raise OptionsError("An adapter needs a name.", code="adapter-name", fix="adapter: {name: lora, r: 8}")
        return cls(name, rest)


@dataclass(frozen=True)
class StepPlan:
    """One step as the user wrote it.

    ``options`` holds what was passed by name, without the parts that have a field of their own. ``adapter`` is the
    step's own adapter: an :class:`AdapterPlan`, ``None`` for full training, or ``"inherit"`` when the step says
    nothing and the pipeline's setting holds.
    """

    kind: str
    name: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    input: str | None = None
    adapter: AdapterPlan | str | None = "inherit"

    def __post_init__(self) -> None:
        own = {"kind": self.kind, "name": self.name, "method": self.method, "input": self.input}
        refuse_passwords({**own, **self.options}, of=self.name)
        object.__setattr__(self, "options", freeze(self.options))

    def __hash__(self) -> int:
        return hash(canonical_json(self.to_data()))

    def to_data(self) -> dict[str, Any]:
        """JSON types; parts left at their default are absent."""
        data: dict[str, Any] = {"kind": self.kind, "name": self.name}
        if self.method is not None:
            data["method"] = self.method
        if self.input is not None:
            data["input"] = self.input
        if isinstance(self.adapter, AdapterPlan):
            data["adapter"] = self.adapter.to_data()
        elif self.adapter is None:
            data["adapter"] = None
        if self.options:
            data["options"] = thaw(self.options)
        return data


@dataclass(frozen=True)
class Plan:
    """The whole pipeline as plain data.

    ``model`` is a reference (folder, GGUF file, hub id, short name, or ``object:...`` for one in memory), or None for
    the embedded default. ``adapter``, ``seed`` and ``trackers`` apply to all steps.
    """

    model: str | None = None
    steps: tuple[StepPlan, ...] = ()
    adapter: AdapterPlan | None = None
    seed: int | None = None
    trackers: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        refuse_passwords({"model": self.model, "track": self.trackers})
        object.__setattr__(self, "trackers", freeze(self.trackers))

    def __hash__(self) -> int:
        return hash(canonical_json(self.to_data()))

    def to_data(self) -> dict[str, Any]:
        """JSON types, in the order in which a plan file shows them."""
        data: dict[str, Any] = {"schema": SCHEMA}
        if self.model is not None:
            data["model"] = self.model
        if self.seed is not None:
            data["seed"] = self.seed
        if self.adapter is not None:
            data["adapter"] = self.adapter.to_data()
        if self.trackers:
            data["track"] = thaw(self.trackers)
        data["steps"] = [step.to_data() for step in self.steps]
        return data

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the plan's data: equal plans, equal fingerprints."""
        return digest(self.to_data())

    def with_step(self, step: StepPlan) -> Plan:
        """A new plan with ``step`` at the end."""
        return replace(self, steps=(*self.steps, step))


@dataclass(frozen=True)
class ComponentRef:
    """A component and who provides it."""

    kind: str
    """``trainer``, ``adapter``, ``quantizer``, ``benchmark``, ``step``, ``exporter``, ``tracker``, ``model`` ..."""
    name: str
    """Short name, such as ``dpo``."""
    provider: str
    """Distribution that provides it; ``inline`` for one handed to the session."""
    version: str
    """Version of that distribution."""
    target: str
    """Import string ``pkg.module:Class``."""
    stage: str = ""
    """Stage of a trainer, such as ``align``."""

    @property
    def id(self) -> str:
        """The spelling that always works: ``dist/name``."""
        return f"{self.provider}/{self.name}"

    @property
    def label(self) -> str:
        """The id and the version, for people."""
        return f"{self.id} {self.version}".rstrip()


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter bound to its component, with every option filled in."""

    component: ComponentRef
    options: Mapping[str, Any]
    label: str
    """For people: ``lora r=8``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", freeze(self.options))


@dataclass(frozen=True)
class ResolvedReward:
    """What a step scores completions with: a component, or a callable in memory."""

    name: str
    """What it is called in logs and reports: the name of the step or component, or that of the function."""
    weight: float = 1.0
    component: ComponentRef | None = None
    """None: a callable in memory."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Every option of the component's options model, as JSON types."""
    step: str | None = None
    """The reward step whose model scores."""
    memory: str | None = None
    """Reference of the callable in memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", freeze(self.options))

    def to_data(self) -> dict[str, Any]:
        """JSON types."""
        component = self.component
        return {
            "name": self.name,
            "weight": self.weight,
            "id": component.id if component else None,
            "version": component.version if component else None,
            "step": self.step,
            "options": thaw(self.options),
        }


@dataclass(frozen=True)
class ResolvedStep:
    """A step bound to its component, with every default filled in."""

    index: int
    """1-based position."""
    kind: str
    name: str
    component: ComponentRef
    options: Mapping[str, Any]
    """Every option of the component's options model, as JSON types."""
    input: str | None
    """Name of the step whose artifact this one starts from; None: the base model, or random weights."""
    adapter: ResolvedAdapter | None
    trains: str
    """``full``, the adapter's label, or ``-``."""
    data: Any
    """Data reference, an embedded data set's name (``tunekit/...``), rows written into the plan, or None."""
    embedded: tuple[str, ...] = ()
    """Which embedded defaults the step uses: ``model``, ``data``."""
    benchmarks: tuple[ComponentRef, ...] = ()
    rewards: tuple[ResolvedReward, ...] = ()
    """What completions are scored with."""
    reason: str = ""
    """Why this component, where the data chose it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", freeze(self.options))
        object.__setattr__(self, "data", freeze(self.data))

    @property
    def folder(self) -> str:
        """Name of the step's folder in the work folder, such as ``02-sft``."""
        return f"{self.index:02d}-{self.name}"


@dataclass(frozen=True)
class ResolvedPlan:
    """The lock: what will run, exactly."""

    plan: Plan
    model: str | None
    """The base model's reference after defaults; None when no step needs one."""
    model_component: ComponentRef | None
    steps: tuple[ResolvedStep, ...]
    seed: int
    trackers: tuple[tuple[ComponentRef, Mapping[str, Any]], ...] = ()

    def step(self, name: str) -> ResolvedStep:
        """The step called ``name``.

        Raises:
            KeyError: if there is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def is_policy(self, name: str) -> bool:
        """Whether the model of a step is one that writes: neither a reward model nor made of one. Reward models are a
        side branch; the steps after them go on from the last policy.

        Raises:
            KeyError: if there is no such step.
        """
        step: ResolvedStep | None = self.step(name)
        while step is not None:
            if step.kind == "reward":
                return False
            step = self.step(step.input) if step.input is not None else None
        return True

    def to_data(self) -> dict[str, Any]:
        """JSON types, for ``plan.lock.yaml`` and ``explain(format="json")``."""
        return {
            "schema": SCHEMA,
            "fingerprint": self.plan.fingerprint(),
            "model": self.model,
            "model_component": asdict(self.model_component) if self.model_component else None,
            "seed": self.seed,
            "steps": [
                {
                    "index": step.index,
                    "kind": step.kind,
                    "name": step.name,
                    "component": {"id": step.component.id, **asdict(step.component)},
                    "input": step.input,
                    "trains": step.trains,
                    "adapter": (
                        {
                            "id": step.adapter.component.id,
                            "version": step.adapter.component.version,
                            "options": thaw(step.adapter.options),
                        }
                        if step.adapter
                        else None
                    ),
                    "data": thaw(step.data),
                    "embedded": list(step.embedded),
                    "benchmarks": [{"id": b.id, "version": b.version} for b in step.benchmarks],
                    **({"rewards": [reward.to_data() for reward in step.rewards]} if step.rewards else {}),
                    **({"reason": step.reason} if step.reason else {}),
                    "options": thaw(step.options),
                }
                for step in self.steps
            ],
            "track": [{"id": c.id, "version": c.version, "options": thaw(o)} for c, o in self.trackers],
        }
