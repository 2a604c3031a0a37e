"""Methods that plugins give to pipelines: the verb of a step spec, found when an attribute is missing.

Looking one up never fails because of a plugin: one that is broken has no verbs, and options that cannot be read cost
the signature only.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

from tunekit._registry import Entry, spec_verb
from tunekit._values import UNSET
from tunekit.errors import AmbiguousNameError, TunekitError, nearest
from tunekit.plan import PIPELINE_NAMES, AdapterPlan
from tunekit.plugins.specs import StepSpec

if TYPE_CHECKING:
    from tunekit.pipeline import Pipeline
    from tunekit.session import Session

__all__ = ["bound_verb", "verb_names"]

_TAKEN = ("kind", "method", "adapter", "input", "name", "self")
"""Parameters of ``Pipeline.step``, which an option cannot have as its name there."""


def verb_names(session: Session) -> list[str]:
    """Every verb that the plugins of ``session`` offer, sorted."""
    return sorted({verb for entry in _steps(session) if (verb := spec_verb(entry.spec))})


def bound_verb(pipeline: Pipeline, name: str, session: Session) -> Callable[..., Pipeline]:
    """The method ``name`` of ``pipeline``. Calling it is ``pipeline.step(...)``.

    Raises:
        AttributeError: if no plugin offers it; it names the nearest methods, and what to type instead.
    """
    found = [entry for entry in _steps(session) if spec_verb(entry.spec) == name]
    if not found:
        raise AttributeError(_unknown(name, session), name=name)
    function = _ambiguous(name, found) if len(found) > 1 else _function(name, found[0], session)
    return MethodType(function, pipeline)


def _steps(session: Session) -> Sequence[Entry]:
    try:
        return session.components("step")
    except TunekitError:  # plugins are being loaded at this very moment, and one of them looks at a pipeline
        return ()


def _function(name: str, entry: Entry, session: Session) -> Callable[..., Pipeline]:
    try:
        kind = session.registry.find("step", entry.spec.name).component.name
    except AmbiguousNameError:
        kind = entry.component.id
    try:
        model = session.options_model(entry.component)
        problem = ""
    except TunekitError as error:
        model, problem = None, error.message
    fields = {} if model is None else {key: field for key, field in model.model_fields.items() if _usable(key)}
    positional = "data" in fields or bool(problem)

    def verb(self: Pipeline, *data: Any, **options: Any) -> Pipeline:
        if len(data) > positional:
            most = "one positional argument (data)" if positional else "no positional arguments"
            raise TypeError(f"{name}() takes {most}, but {len(data)} were given; name the options")
        if data:
            if "data" in options:
                raise TypeError(f"{name}() got multiple values for argument 'data'")
            options["data"] = data[0]
        return self.step(kind, **options)

    own = ["name", "input", *(["adapter"] if isinstance(entry.spec, StepSpec) and entry.spec.adapters else [])]
    return _dressed(
        verb, name, entry, _signature(fields, own, open_ended=bool(problem)), _doc(kind, entry, fields, own, problem)
    )


def _ambiguous(name: str, found: Sequence[Entry]) -> Callable[..., Pipeline]:
    spellings = [f'.step("{entry.component.id}", ...)' for entry in found]

    def verb(self: Pipeline, *data: Any, **options: Any) -> Pipeline:
        raise AmbiguousNameError(
            f"{len(found)} installed plugins offer the method {name!r}.",
            asked=f".{name}(...)",
            found=", ".join(entry.component.label for entry in found),
            fix="write " + " or ".join(spellings),
            details={"kind": "step", "stage": "", "spellings": [entry.component.id for entry in found]},
        )

    text = f"Offered by {len(found)} plugins; write {' or '.join(spellings)}."
    return _dressed(verb, name, found[0], _signature({}, ["name", "input"], open_ended=True), text)


def _dressed(
    function: Callable[..., Any], name: str, entry: Entry, signature: inspect.Signature, doc: str
) -> Callable[..., Pipeline]:
    function.__name__ = name
    function.__qualname__ = f"Pipeline.{name}"
    function.__module__ = entry.component.target.partition(":")[0]
    function.__doc__ = doc
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _usable(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and name not in _TAKEN


def _signature(fields: dict[str, Any], own: Sequence[str], *, open_ended: bool) -> inspect.Signature:
    kinds = inspect.Parameter
    parameters = [kinds("self", kinds.POSITIONAL_OR_KEYWORD)]
    for name, field in sorted(fields.items(), key=lambda item: item[0] != "data"):
        parameters.append(
            kinds(
                name,
                kinds.POSITIONAL_OR_KEYWORD if name == "data" else kinds.KEYWORD_ONLY,
                default=_default(field),
                annotation=field.annotation,
            )
        )
    settings: dict[str, tuple[Any, Any]] = {
        "name": (None, str | None),
        "input": (None, str | None),
        "adapter": (UNSET, AdapterPlan | str | None),
    }
    for name in own:
        default, annotation = settings[name]
        parameters.append(kinds(name, kinds.KEYWORD_ONLY, default=default, annotation=annotation))
    if open_ended:
        parameters.append(kinds("options", kinds.VAR_KEYWORD, annotation=Any))
    return inspect.Signature(parameters, return_annotation="Pipeline")


def _default(field: Any) -> Any:
    if field.is_required():
        return inspect.Parameter.empty
    if field.default_factory is None:
        return field.default
    try:
        return field.default_factory()
    except Exception:  # noqa: BLE001  (code of a plugin; some factories need the other values)
        return UNSET


def _doc(kind: str, entry: Entry, fields: dict[str, Any], own: Sequence[str], problem: str) -> str:
    settings = {
        "name": f"name of the step; default ``{entry.component.name}``.",
        "input": "name of the step to start from; default: the step before.",
        "adapter": "this step's own adapter; None: full training. Default: the pipeline's.",
    }
    lines = [entry.spec.summary or f"A step of {entry.component.label}.", ""]
    lines += [f'The same as ``.step("{kind}", ...)``; provided by {entry.component.label}.', ""]
    if problem:
        lines += [f"Its options cannot be shown: {problem}", ""]
    lines.append("Args:")
    for name, field in sorted(fields.items(), key=lambda item: item[0] != "data"):
        text = " ".join((field.description or "").split())
        lines.append(f"    {name}: {text}" if text else f"    {name}")
    lines += [f"    {name}: {settings[name]}" for name in own]
    return "\n".join(lines)


def _unknown(name: str, session: Session) -> str:
    steps = _steps(session)
    parts = [f"Pipeline has no method {name!r}"]
    close = nearest(name, (*PIPELINE_NAMES, *verb_names(session)))
    if close:
        parts.append(f"did you mean {' or '.join(close)}?")
    if any(entry.component.name == name for entry in steps):
        parts.append(f'the step of that name is .step("{name}", ...)')
    else:
        parts.append(
            'a step of a plugin that has no method of its own is .step("name", ...); if a plugin should offer '
            f"{name!r}, install it (`tunekit plugins` lists those that are there)"
        )
    try:
        out = [record for record in session.plugins() if record.state != "loaded"]
    except TunekitError:
        out = []
    parts += [f"plugin {record.label} is {record.state}: {record.reason}" for record in out]
    return "; ".join(parts)
