"""What would run, for people and for machines. Touches no disk beyond finding plugins, and imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.errors import OptionsError, nearest
from tunekit.plan import TRAINING_KINDS, Plan, ResolvedPlan, ResolvedReward, ResolvedStep, thaw
from tunekit.resolve import resolve
from tunekit.session import NO_OBJECTS, OBJECT, Session, default_session

__all__ = ["FORMATS", "explain", "explain_resolved"]

FORMATS = ("text", "tree", "json")

ALWAYS_SHOWN = ("learning_rate", "parameters")
"""Options of training steps that are shown even if nobody set them: their default depends on the plan."""


def explain(
    plan: Plan, *, objects: Mapping[str, Any] = NO_OBJECTS, session: Session | None = None, format: str = "text"
) -> str:
    """What ``plan`` would do.

    Args:
        plan: what to explain.
        objects: things in memory by reference.
        session: plugins to use; default: the installed ones.
        format: ``text``, ``tree`` or ``json``.

    Raises:
        CheckFailed: if names or options cannot be resolved; it lists every problem.
        OptionsError: for another format.
    """
    if format not in FORMATS:
        raise OptionsError(
            f"explain has no format {format!r}.",
            asked=format,
            found=", ".join(FORMATS),
            suggestions=nearest(format, FORMATS),
        )
    return explain_resolved(resolve(plan, session or default_session(), objects), format)


def explain_resolved(resolved: ResolvedPlan, format: str = "text") -> str:
    """The same for a plan that is resolved already."""
    if format == "json":
        return json.dumps(resolved.to_data(), indent=2, ensure_ascii=False)
    return _tree(resolved) if format == "tree" else _text(resolved)


def _text(resolved: ResolvedPlan) -> str:
    rows = [("#", "step", "input", "trains", "component", "data", "options")]
    for step in resolved.steps:
        rows.append(
            (
                str(step.index),
                _name(step),
                _input(resolved, step),
                step.trains,
                _component(step),
                _data(step),
                _options(resolved, step),
            )
        )
    lines = [*_head(resolved), ""] if _head(resolved) else []
    if len(rows) == 1:
        return "\n".join([*lines, "no steps"]) + "\n"
    lines += _table(rows)
    notes = _notes(resolved)
    if notes:
        lines += ["", *notes]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0].rjust(widths[0])
        lines.append("  ".join([first, *(cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return [line.rstrip() for line in lines]


def _head(resolved: ResolvedPlan) -> list[str]:
    lines = []
    if resolved.model is not None:
        lines.append(f"model  {_model(resolved)}")
    lines.append(f"seed   {resolved.seed}")
    for component, options in resolved.trackers:
        lines.append(f"track  {component.id} {component.version} {_pairs(thaw(options))}".rstrip())
    return lines


def _model(resolved: ResolvedPlan) -> str:
    text = _ref(resolved.model)
    component = resolved.model_component
    if component is not None:
        text += f"  ({component.id} {component.version})"
    return text + ("  *" if any("model" in step.embedded for step in resolved.steps) else "")


def _name(step: ResolvedStep) -> str:
    return (
        step.name if step.name == step.kind or step.name.startswith(f"{step.kind}-") else f"{step.name} ({step.kind})"
    )


def _input(resolved: ResolvedPlan, step: ResolvedStep) -> str:
    if step.input is not None:
        return step.input
    if step.kind == "pretrain":
        return "random weights"
    return "base model *" if "model" in step.embedded else "base model" if resolved.model is not None else "-"


def _component(step: ResolvedStep) -> str:
    return f"{step.component.id} {step.component.version}".rstrip()


def _ref(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return f"{value.removeprefix(OBJECT).partition('-')[0]} in memory" if value.startswith(OBJECT) else value
    if isinstance(value, Sequence):
        return f"{len(value)} rows in the plan"
    if isinstance(value, Mapping) and "mix" in value:
        return _mixture(value["mix"])
    if isinstance(value, Mapping) and isinstance(value.get("hub"), str):
        return str(value["hub"])
    return "rows in the plan"


def _mixture(parts: Any) -> str:
    if isinstance(parts, Mapping):
        parts = [
            {**(value if isinstance(value, Mapping) else {"weight": value}), "name": key}
            for key, value in parts.items()
        ]
    named = [part for part in parts if isinstance(part, Mapping)]
    weights = [part.get("weight", 1.0) for part in named]
    if not all(isinstance(weight, int | float) and weight > 0 for weight in weights):
        return "a mixture"  # what is wrong with it, check says
    total = sum(weights)
    shares = (
        f"{weight / total:.0%} {part.get('name') or _ref(part.get('data'))}"
        for part, weight in zip(named, weights, strict=True)
    )
    return " + ".join(shares)


def _data(step: ResolvedStep) -> str:
    if step.benchmarks:
        given = thaw(step.options).get("data")
        if given is None:
            return "samples *"
        shown = given if isinstance(given, str) else _pairs(given)
        return f"{shown}, else samples *" if "sample" in step.embedded else shown
    if step.data is None:
        return "-"
    return ", ".join([_ref(step.data) + (" *" if "data" in step.embedded else ""), *_selection(step)])


def _apart(step: ResolvedStep) -> tuple[str, ...]:
    """Options that are not shown among the options: the column of the data has them."""
    chosen = ("shuffle", "dedupe", "decontaminate", "validation") if step.data is not None else ()
    return ("data", "benchmarks", *chosen, *(("reward",) if step.rewards else ()))


def _selection(step: ResolvedStep) -> list[str]:
    """Which of the rows are used, in the order in which it is decided; ``limit`` stands among the options."""
    options = step.options
    parts = [f"{_COPIES.get(str(options['dedupe']), options['dedupe'])} left out"] if options.get("dedupe") else []
    parts += ["benchmark text left out"] if options.get("decontaminate") else []
    parts += ["shuffled"] if options.get("shuffle") else []
    validation = options.get("validation")
    if isinstance(validation, float):
        parts.append(f"{100 * validation:.6g}% held out")
    elif isinstance(validation, int):
        parts.append(f"{validation:,} rows held out")
    elif validation is not None:
        parts.append(f"held out: {_ref(validation)}")
    return parts


_COPIES = {"exact": "copies", "near": "copies and near-copies"}


def _options(resolved: ResolvedPlan, step: ResolvedStep) -> str:
    written = next((plan.options for plan in resolved.plan.steps if plan.name == step.name), {})
    shown = {key: step.options.get(key, value) for key, value in written.items() if key not in _apart(step)}
    if step.kind in TRAINING_KINDS:
        shown.update({key: step.options[key] for key in ALWAYS_SHOWN if step.options.get(key) is not None})
    parts = [", ".join(benchmark.name for benchmark in step.benchmarks)] if step.benchmarks else []
    if step.kind == "quantize" and "scheme" in shown:
        parts.append(str(shown.pop("scheme")))
    parts += [f"reward={_rewards(step)}"] if step.rewards else []
    parts.append(_pairs(thaw(shown)))
    return " ".join(part for part in parts if part)


def _rewards(step: ResolvedStep) -> str:
    return " + ".join(
        (f"{reward.weight:g}*" if reward.weight != 1 else "") + reward.name.replace(" ", "_") for reward in step.rewards
    )


def _pairs(options: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in options.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ",".join(map(_value, value)) if len(value) <= 8 else f"[{len(value)} items]"
    return str(value)


def _notes(resolved: ResolvedPlan) -> list[str]:
    lines = []
    adapters: dict[tuple[str, str], list[str]] = {}
    for step in resolved.steps:
        if step.adapter is not None:
            key = f"{step.adapter.component.id} {step.adapter.component.version} {_pairs(thaw(step.adapter.options))}"
            adapters.setdefault((step.adapter.label, key), []).append(step.name)
    for (label, key), names in adapters.items():
        lines.append(f"{label} ({', '.join(names)}): {key}")
    if adapters:
        lines.append("An adapter is kept and also merged, with proof; the next step starts from the merged model.")
    benchmarks = {f"{item.id} {item.version}" for step in resolved.steps for item in step.benchmarks}
    if benchmarks:
        lines.append(f"benchmarks: {', '.join(sorted(benchmarks))}")
    for step in resolved.steps:
        if step.rewards:
            lines.append(f"{step.name} is scored by {', '.join(_scorer(reward) for reward in step.rewards)}")
        if step.reason:
            lines.append(f"{step.component.name} was chosen for the data of {step.name}: {step.reason}")
    if any(step.embedded for step in resolved.steps):
        lines.append("* embedded default, for trying out; run(strict=True) refuses it")
    if any("sample" in step.embedded for step in resolved.steps):
        lines.append("  samples of benchmarks: not comparable with published scores")
    return lines


def _scorer(reward: ResolvedReward) -> str:
    if reward.component is None:
        return f"{reward.name} (a function in memory)"
    label = f"{reward.component.id} {reward.component.version}".rstrip()
    return f"{label} with the model of step {reward.step}" if reward.step is not None else label


def _tree(resolved: ResolvedPlan) -> str:
    """Each step under the one that it starts from."""
    lines = list(_head(resolved))

    def walk(parent: str | None, indent: str) -> None:
        children = [step for step in resolved.steps if step.input == parent]
        for position, step in enumerate(children):
            last = position == len(children) - 1
            lines.append(f"{indent}{'└─' if last else '├─'} {step.index} {_name(step)}: {_component(step)}")
            inner = indent + ("   " if last else "│  ")
            has_children = any(other.input == step.name for other in resolved.steps)
            bar = "│ " if has_children else "  "
            facts = {
                "input": _input(resolved, step),
                "trains": step.trains,
                "data": _data(step),
                "options": _options(resolved, step),
            }
            for key, value in facts.items():
                if value and value != "-":
                    lines.append(f"{inner}{bar} {key:<8}{value}")
            walk(step.name, inner)

    walk(None, "")
    notes = _notes(resolved)
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"
