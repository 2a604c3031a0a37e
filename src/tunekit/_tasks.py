"""What options of the verbs stand for: ``task=`` and ``objective=`` for a trainer, ``prompts=`` for ``data``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunekit._values import data_ref, holds_data, plan_value, reward_ref
from tunekit.errors import PipelineError, nearest

__all__ = ["choose_method", "frozen_option"]

OBJECTIVES = {"causal": "causal", "masked": "mlm"}
CHOOSERS = {"pretrain": ("objective",), "post_pretrain": ("task", "objective")}
TASKS = ("lm", "classification", "ner", "regression")


def choose_method(kind: str, method: str | None, options: dict[str, Any]) -> str | None:
    """The name of the trainer of a step. Takes ``task`` and ``objective`` out of ``options``; of ``align``, the
    ``prompts`` become its ``data``.

    A mapping of several tasks becomes the option ``tasks``. Without ``task`` and ``objective`` nothing changes.

    Raises:
        PipelineError: code ``prompts-and-data`` where both are given; ``step-task`` for a task or objective that is
            unknown, that does not fit the other one, or that stands beside ``method``.
    """
    if kind == "align" and "prompts" in options:
        _prompts_are_data(options)
    chosen = {key: options.pop(key) for key in CHOOSERS.get(kind, ()) if key in options}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if not chosen:
        return method
    asked = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
    if method is not None:
        raise PipelineError(
            f"{kind}: {asked} and method={method!r} both choose the trainer.",
            code="step-task",
            asked=f"{kind}({asked}, method={method!r})",
            fix="keep one of them",
        )
    task, objective = chosen.get("task", "lm"), chosen.get("objective")
    if isinstance(task, Mapping):
        if not task or "tasks" in options:
            raise PipelineError(
                f"{kind}: {'two lists of tasks' if task else 'task names no task'}.",
                code="step-task",
                asked=asked,
                fix='task={"mood": {"task": "classification", "data": "a.tsv"}, "names": {"task": "ner", ...}}',
            )
        options["tasks"] = task
        trainer = "multitask"
    elif isinstance(task, str) and task in TASKS:
        trainer = task
    else:
        raise _unknown(kind, "task", task, TASKS, "or a mapping of several, name to task")
    if objective is not None and objective not in OBJECTIVES:
        raise _unknown(kind, "objective", objective, tuple(OBJECTIVES), "")
    if trainer == "lm":
        return OBJECTIVES[objective or "causal"]
    if objective is not None:
        raise PipelineError(
            f'{kind}: objective={objective!r} is for task="lm"; every other task has its own.',
            code="step-task",
            asked=f"{kind}({asked})",
            fix="leave objective out",
        )
    return trainer


def frozen_option(kind: str, step: str, key: str, value: Any, objects: dict[str, Any]) -> Any:
    """An option as the plan holds it; data in memory is put into ``objects``."""
    if holds_data(kind, key):
        return data_ref(value, objects)
    if key == "reward":
        return reward_ref(f"{step}.reward", value, objects)
    if kind == "pretrain" and key == "architecture" and hasattr(value, "to_json_string"):
        value = json.loads(value.to_json_string()) | {"model_type": value.model_type}  # a transformers config
    if kind != "post_pretrain" or key != "tasks" or not isinstance(value, Mapping):
        return plan_value(f"{step}.{key}", value)
    return {
        name: {inner: frozen_option(kind, f"{step}.tasks.{name}", inner, item, objects) for inner, item in task.items()}
        if isinstance(task, Mapping)
        else plan_value(f"{step}.tasks.{name}", task)
        for name, task in value.items()
    }


def _prompts_are_data(options: dict[str, Any]) -> None:
    """``prompts`` is another name for ``data``; single prompts may be written without a row around them."""
    prompts = options.pop("prompts")
    if prompts is None:
        return
    if options.get("data") is not None:
        raise PipelineError(
            "align: data and prompts are two names for one thing, and both are given.",
            code="prompts-and-data",
            asked="align(data=..., prompts=...)",
            fix="keep one of them",
        )
    if isinstance(prompts, list | tuple):
        prompts = [{"prompt": item} if _is_bare(item) else item for item in prompts]
    options["data"] = prompts


def _is_bare(item: Any) -> bool:
    """Whether it is a prompt without a row around it: a text, or a list of messages."""
    return isinstance(item, str | list | tuple)


def _unknown(kind: str, what: str, value: Any, known: tuple[str, ...], more: str) -> PipelineError:
    close = nearest(str(value), known)
    return PipelineError(
        f"{kind}: there is no {what} {value!r}.",
        code="step-task",
        asked=f"{what}={value!r}",
        found=", ".join(known) + (f", {more}" if more else ""),
        suggestions=close,
        fix=f"{what}={(close or known)[0]!r}",
    )
