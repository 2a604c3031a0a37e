"""The text of a pipeline, as one would type it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunekit.plan import STEP_KINDS, AdapterPlan, FrozenDict, Plan, StepPlan, free_name, thaw

__all__ = ["adapter_text", "chain_text"]

WIDTH = 96

_IN_MEMORY = re.compile(r"'object:(\w+)-[0-9a-f-]+'")


def chain_text(plan: Plan) -> str:
    """One line if it fits, else one call a line."""
    calls = _calls(plan)
    line = ".".join(calls)
    return line if len(line) <= WIDTH else "(" + "\n    .".join(calls) + ")"


def adapter_text(plan: AdapterPlan) -> str:
    """``lora(r=8)``."""
    return _call(plan.name, plan)


def _calls(plan: Plan) -> list[str]:
    calls = [f"Pipeline(model={_literal(plan.model)})" if plan.model is not None else "Pipeline()"]
    taken: set[str] = set()
    for step in plan.steps:
        calls.append(_step_call(step, taken))
        taken.add(step.name)
    if plan.adapter is not None:
        calls.append(_call(plan.adapter.name, plan.adapter))
    for tracker in plan.trackers:
        options = {key: value for key, value in tracker.items() if key != "name"}
        calls.append(f"track({_join([repr(tracker['name'])], options)})")
    if plan.seed is not None:
        calls.append(f"seed({plan.seed})")
    return calls


def _step_call(step: StepPlan, taken: set[str]) -> str:
    options = dict(step.options)
    first: list[str] = []
    word = step.kind
    if step.kind not in STEP_KINDS:
        word, first = "step", [repr(step.kind)]
    elif step.kind == "quantize" and "scheme" in options:
        first = [_literal(options.pop("scheme"))]
    elif step.kind == "evaluate" and "benchmarks" in options:
        first = [_literal(options.pop("benchmarks"))]
    elif step.kind == "export" and step.method is not None:
        first = [repr(step.method)]
    own: dict[str, str] = {}
    if step.method is not None and step.kind != "export":
        own["method"] = repr(step.method)
    if isinstance(step.adapter, AdapterPlan):
        own["adapter"] = _call(step.adapter.name, step.adapter)
    elif step.adapter is None:
        own["adapter"] = "None"
    if step.input is not None:
        own["input"] = repr(step.input)
    if step.name != free_name(step.kind, taken):
        own["name"] = repr(step.name)
    return f"{word}({_join(first, options, own)})"


def _call(name: str, plan: AdapterPlan) -> str:
    if name in ("lora", "qlora"):
        return f"{name}({_join([], plan.options)})"
    return f"adapter({_join([repr(name)], plan.options)})"


def _join(first: list[str], options: Mapping[str, Any], own: Mapping[str, str] = FrozenDict()) -> str:
    named = [f"{key}={text}" for key, text in own.items()]
    return ", ".join([*first, *named, *(f"{key}={_literal(value)}" for key, value in options.items())])


def _literal(value: Any) -> str:
    if isinstance(value, str) and value.startswith("object:"):
        return f"<{value.removeprefix('object:').partition('-')[0]}>"
    plain = thaw(value)
    text = _IN_MEMORY.sub(r"<\1>", repr(plain))
    if len(text) > 200 and isinstance(plain, list):
        return f"[... {len(plain)} items]"
    return text
