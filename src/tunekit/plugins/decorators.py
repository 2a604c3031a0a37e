"""Components without packaging: decorate a class or function and hand it to a session.

::

    import tunekit.plugins
    from tunekit import Pipeline, Session

    @tunekit.plugins.benchmark(name="capitals", sample=True)
    class Capitals:
        def rows(self, source, options): ...
        def request(self, row): ...
        def judge(self, row, response): ...
        def protocol(self): ...

    Pipeline(model="base", session=Session(plugins=[Capitals])).evaluate(["capitals"]).run()

A decorator only marks: the class or function comes back unchanged, and nothing is registered anywhere. A session that
is given it, or the module or object that it stands in, uses that very object. A packaged plugin may decorate what
stands in its entry-point module, too. The keyword arguments are the fields of the kind's spec; ``target`` is what is
decorated, ``options`` may be the options class itself, and ``summary`` is the first line of the docstring if it is not
given.

The version of such a component is a hash of its code, so that a changed cell is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar

from tunekit.errors import PluginError
from tunekit.plugins.specs import (
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

__all__ = [
    "Decoration",
    "adapter",
    "benchmark",
    "code_version",
    "data_format",
    "dataset",
    "decorations",
    "exporter",
    "is_decorated",
    "model",
    "quantizer",
    "reward",
    "step",
    "tracker",
    "trainer",
]

ATTRIBUTE = "__tunekit_decorations__"

C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Decoration:
    """What a decorator attaches."""

    spec: Spec
    options: type[Any] | None
    """The options model, if it was given as a class."""
    state: str
    """Digest of the code with the lists and dicts it refers to, as they were when it was decorated."""
    preview: Callable[..., Any] | None = None
    """The preview, if it was given as a callable."""


def decorations(thing: Any) -> tuple[Decoration, ...]:
    """What decorators attached to ``thing`` itself; a subclass of a decorated class has none of its own."""
    own = getattr(thing, "__dict__", None) or {}
    found = own.get(ATTRIBUTE, ())
    return found if isinstance(found, tuple) else ()


def is_decorated(thing: Any) -> bool:
    """Whether ``thing`` is a class or function that a decorator marked."""
    return isinstance(thing, type | FunctionType) and bool(decorations(thing))


def code_version(thing: Any, decoration: Decoration) -> str:
    """Version of a decorated thing: ``code-`` and eight digits of the hash of what its code does now, and of the lists
    and dicts that it was decorated with."""
    import hashlib

    from tunekit.plugins._code import code_digest

    now = code_digest(thing, decoration.options, containers=False)
    return f"code-{hashlib.sha256(f'{decoration.state} {now}'.encode()).hexdigest()[:8]}"


def trainer(
    *,
    name: str,
    stage: str,
    data: tuple[str, ...] = (),
    adapters: bool = True,
    preview: Callable[..., Any] | str = "",
    rewards: str = "",
    scored_by: str = "",
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[C], C]:
    """Mark a class with ``run(ctx: StepContext) -> Artifact`` as a trainer. See :class:`TrainerSpec`. ``preview`` may
    be the callable itself.

    ::

        @trainer(name="mine", stage="sft", data=("prompt_completion",), options=MyOptions)
        class Mine:
            def run(self, ctx): ...

        Pipeline(session=Session(plugins=[Mine])).sft(method="mine")

    Raises:
        PluginError: if it is no such class.
    """
    return _on_class(TrainerSpec, locals(), "run")


def adapter(
    *,
    name: str,
    label: str = "{name}",
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[C], C]:
    """Mark a class with ``attach``, ``save``, ``merge`` and ``detached`` as an adapter. See :class:`AdapterSpec`.

    ::

        @adapter(name="bias", label="{name} r={r}", options=BiasOptions)
        class Bias:
            def __init__(self, options): ...

        Pipeline(session=Session(plugins=[Bias])).sft().adapter("bias", r=4)

    Raises:
        PluginError: if it is no such class.
    """
    return _on_class(AdapterSpec, locals(), "attach", "save", "merge", "detached")


def quantizer(
    *,
    name: str,
    schemes: tuple[str, ...] = (),
    calibrated: bool = False,
    trainable_with: tuple[str, ...] = (),
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[C], C]:
    """Mark a class with ``run(ctx: StepContext) -> Artifact`` as a quantizer. See :class:`QuantizerSpec`.

    ::

        @quantizer(name="round", schemes=("int8",), options=RoundOptions)
        class Round:
            def run(self, ctx): ...

        Pipeline(session=Session(plugins=[Round])).quantize("int8", method="round")

    Raises:
        PluginError: if it is no such class.
    """
    return _on_class(QuantizerSpec, locals(), "run")


def benchmark(
    *,
    name: str,
    needs: str = "loglikelihood",
    folder: str = "",
    folders: tuple[str, ...] = (),
    hub: str = "",
    sample: bool = False,
    data: str = "",
    brings_data: bool = False,
    provenance: str = "",
    runs_code: bool = False,
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[C], C]:
    """Mark a class with ``rows``, ``request``, ``judge`` and ``protocol`` as a benchmark. See :class:`BenchmarkSpec`.

    ::

        @benchmark(name="capitals", needs="generation", sample=True)
        class Capitals:
            def rows(self, source, options): ...
            def request(self, row): ...
            def judge(self, row, response): ...
            def protocol(self): ...

        Pipeline(model="base", session=Session(plugins=[Capitals])).evaluate(["capitals"])

    Raises:
        PluginError: if it is no such class.
    """
    return _on_class(BenchmarkSpec, locals(), "rows", "request", "judge", "protocol")


def exporter(
    *,
    name: str,
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[C], C]:
    """Mark a class with ``run(ctx: StepContext) -> Artifact`` as an exporter. See :class:`ExporterSpec`.

    ::

        @exporter(name="npz")
        class Npz:
            def run(self, ctx): ...

        Pipeline(session=Session(plugins=[Npz])).export("npz")

    Raises:
        PluginError: if it is no such class.
    """
    return _on_class(ExporterSpec, locals(), "run")


def reward(
    *,
    name: str,
    columns: tuple[str, ...] = (),
    runs_code: bool = False,
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[R], R]:
    """Mark a function ``(prompts, completions, **columns)``, or a class with such a ``__call__``, as a reward. See
    :class:`RewardSpec`. A class is made with its options, if it has any.

    ::

        @reward(name="brevity")
        def brevity(prompts, completions, **columns):
            return [-len(completion) for completion in completions]

        Pipeline(session=Session(plugins=[brevity])).align(method="grpo", reward="brevity")

    Raises:
        PluginError: if it is neither, or a function with options.
    """
    given = dict(locals())

    def decorate(thing: R) -> R:
        if isinstance(thing, type):
            if not any("__call__" in vars(base) for base in thing.__mro__):
                raise _wrong(
                    RewardSpec,
                    f"needs __call__, and {thing.__name__} has none",
                    "add __call__(self, prompts, completions, **columns); see tunekit.plugins.Reward",
                )
            built = ("options",) if options is not None else ()
            if not _takes(thing, built):
                raise _wrong(
                    RewardSpec,
                    f"is built as {thing.__name__}({', '.join(built)}), which {thing.__name__} does not take",
                    f"give it an __init__(self{', options' if built else ''})",
                )
            _attach(thing, RewardSpec, given)
            return thing
        if options is not None:
            raise _wrong(
                RewardSpec, "has options, and a function takes none", "write a class with __init__(self, options)"
            )
        checked: R = _on_function(RewardSpec, given, ("prompts", "completions"), named=True)(thing)
        return checked

    return decorate


def tracker(
    *,
    name: str,
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[C], C]:
    """Mark a class with ``on_event`` and ``close`` as a tracker. See :class:`TrackerSpec`.

    ::

        @tracker(name="lines", options=LinesOptions)
        class Lines:
            def __init__(self, options): ...
            def on_event(self, event): ...
            def close(self): ...

        Pipeline(session=Session(plugins=[Lines])).sft().track("lines", path="log.txt")

    Raises:
        PluginError: if it is no such class.
    """
    return _on_class(TrackerSpec, locals(), "on_event", "close")


def step(
    *,
    name: str,
    makes: str = "model",
    data: tuple[str, ...] = (),
    adapters: bool = False,
    verb: str = "",
    preview: Callable[..., Any] | str = "",
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[C], C]:
    """Mark a class with ``run(ctx: StepContext) -> Artifact`` as a step kind of its own. See :class:`StepSpec`.
    ``preview`` may be the callable itself.

    ::

        @step(name="distill", verb="distill", data=("text",), options=DistillOptions)
        class Distill:
            def run(self, ctx): ...

        Pipeline(session=Session(plugins=[Distill])).distill(temperature=2.0)

    Raises:
        PluginError: if it is no such class.
    """
    return _on_class(StepSpec, locals(), "run")


def model(
    *,
    name: str,
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[F], F]:
    """Mark a function ``() -> ModelSource`` as a model known by a short name. See :class:`ModelSpec`.

    ::

        @model(name="house-model")
        def house_model(): ...

        Pipeline(model="house-model", session=Session(plugins=[house_model]))

    Raises:
        PluginError: if it is no such function.
    """
    return _on_function(ModelSpec, locals(), ())


def dataset(
    *,
    name: str,
    schema: str,
    license: str = "",
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[F], F]:
    """Mark a function ``() -> Iterable[row]`` of canonical rows as a data set. See :class:`DatasetSpec`.

    ::

        @dataset(name="sums", schema="prompt_completion")
        def sums():
            return [{"prompt": f"{n} + {n} =", "completion": f" {2 * n}"} for n in range(100)]

        Pipeline(session=Session(plugins=[sums])).sft("sums")

    Raises:
        PluginError: if it is no such function.
    """
    return _on_function(DatasetSpec, locals(), ())


def data_format(
    *,
    name: str,
    schema: str,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    summary: str = "",
    options: type[Any] | str | None = None,
    requires: tuple[str, ...] = (),
    install: str = "",
) -> Callable[[F], F]:
    """Mark a function ``(row) -> row`` as a data format. See :class:`DataFormatSpec`.

    ::

        @data_format(name="asked", schema="prompt_completion", columns=("ask", "reply"))
        def asked(row):
            if not row["reply"]:
                raise RowProblem("reply", "is empty")
            return {"prompt": row["ask"], "completion": row["reply"]}

        Pipeline(session=Session(plugins=[asked])).sft("faq.jsonl", format="asked")

    Raises:
        PluginError: if it is no such function.
    """
    return _on_function(DataFormatSpec, locals(), ("row",))


# What the kinds have in common

_BUILT_WITH: Mapping[str, tuple[str, ...]] = {"adapter": ("options",), "tracker": ("options",)}
"""Arguments that a class of a kind is built with; others take none."""


def _on_class(spec: type[Spec], fields: dict[str, Any], *methods: str) -> Callable[[C], C]:
    def decorate(cls: C) -> C:
        if not isinstance(cls, type):
            raise _wrong(spec, f"goes on a class, found {cls!r:.80}", f"write it above a class with {_words(methods)}")
        missing = [method for method in methods if not callable(getattr(cls, method, None))]
        if missing:
            raise _wrong(
                spec,
                f"needs {_words(methods)}, and {cls.__name__} has no {_words(missing, 'or')}",
                f"add {_words(missing)}; see tunekit.plugins.{_protocol(spec)}",
            )
        arguments = _BUILT_WITH.get(spec.kind, ())
        if not _takes(cls, arguments):
            raise _wrong(
                spec,
                f"is built as {cls.__name__}({', '.join(arguments)}), which {cls.__name__} does not take",
                f"give it an __init__(self{''.join(f', {name}' for name in arguments)})",
            )
        _attach(cls, spec, fields)
        return cls

    return decorate


def _on_function(
    spec: type[Spec], fields: dict[str, Any], arguments: tuple[str, ...], *, named: bool = False
) -> Callable[[F], F]:
    """``named``: the arguments are passed by name, and there may be more."""

    def decorate(function: F) -> F:
        import inspect

        call = f"({', '.join(arguments)})"
        if not inspect.isfunction(function):
            raise _wrong(spec, f"goes on a function, found {function!r:.80}", f"write it above a function {call}")
        if not (_takes_named(function, arguments) if named else _takes(function, arguments)):
            raise _wrong(
                spec,
                f"is called as {function.__name__}{call}, which {function.__name__} does not take",
                f"write def {function.__name__}{call}",
            )
        _attach(function, spec, fields)
        return function

    return decorate


def _attach(thing: Any, spec: type[Spec], fields: Mapping[str, Any]) -> None:
    from tunekit.plugins._code import code_digest

    given = dict(fields)
    options = given.pop("options")
    model: type[Any] | None = None
    if isinstance(options, type):
        model = options
        if not hasattr(model, "model_validate_json"):
            raise _wrong(
                spec,
                f"takes a pydantic model as options=, and {model.__name__} is none",
                "derive it from tunekit.plugins.Options",
            )
        options = f"{model.__module__}:{model.__qualname__}"
    preview = given.get("preview")
    shows: Callable[..., Any] | None = None
    if preview is not None and not isinstance(preview, str):
        if not callable(preview) or not _takes(preview, ("ctx",)):
            raise _wrong(spec, f"takes a callable (ctx) as preview=, found {preview!r:.80}", "write def preview(ctx)")
        shows = preview
        given["preview"] = f"{getattr(preview, '__module__', '')}:{getattr(preview, '__qualname__', 'preview')}"
    doc = (vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__) or ""
    given["summary"] = given["summary"] or doc.strip().partition("\n")[0]
    made = spec(target=f"{thing.__module__}:{thing.__qualname__}", options=options, **given)
    state = code_digest(thing, model, containers=True)
    new = Decoration(spec=made, options=model, state=state, preview=shows)
    setattr(thing, ATTRIBUTE, (*decorations(thing), new))


def _takes(thing: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    import inspect

    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # written in C: nothing is known
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _takes_named(function: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    import inspect

    try:
        inspect.signature(function).bind_partial(**dict.fromkeys(arguments))
    except TypeError:
        return False
    return True


def _wrong(spec: type[Spec], problem: str, fix: str) -> PluginError:
    name = next(name for name, kind in _KINDS.items() if kind is spec)
    return PluginError(f"@tunekit.plugins.{name} {problem}.", code="bad-decoration", fix=fix)


_KINDS: Mapping[str, type[Spec]] = {
    "trainer": TrainerSpec,
    "adapter": AdapterSpec,
    "quantizer": QuantizerSpec,
    "benchmark": BenchmarkSpec,
    "exporter": ExporterSpec,
    "reward": RewardSpec,
    "tracker": TrackerSpec,
    "step": StepSpec,
    "model": ModelSpec,
    "dataset": DatasetSpec,
    "data_format": DataFormatSpec,
}


def _protocol(spec: type[Spec]) -> str:
    return {"adapter": "Adapter", "benchmark": "Benchmark", "tracker": "Tracker"}.get(spec.kind, "Component")


def _words(names: tuple[str, ...] | list[str], last: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
