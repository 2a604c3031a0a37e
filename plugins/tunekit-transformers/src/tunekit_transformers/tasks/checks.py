"""What cannot work with models that write no text. Pure: looks at the plan alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunekit.plugins import Finding

__all__ = ["check_tasks"]

_TASKS = ("classification", "ner", "regression", "multitask")
_ENCODERS = ("all-minilm-l6-v2",)
_NEEDS_TEXT = {
    "evaluate": "its benchmarks ask a model for text or for the probability of text",
    "sft": "it learns to write answers",
    "align": "it learns to write answers",
}


def check_tasks(plan: Any) -> Iterator[Finding]:
    """An error for each step that needs a language model and would start from a classifier, a tagger, a scorer, or an
    encoder."""
    base = str(plan.model or "").rpartition("/")[2]
    what = {"": f"the encoder {base}" if base in _ENCODERS else ""}
    by_name: dict[str, Any] = {}
    for step in plan.steps:
        source = step.input if step.input else next(reversed(by_name), "") if by_name else ""
        found = what.get(source, "")
        method = str(step.method or "").rpartition("/")[2]
        if found and step.kind in _NEEDS_TEXT:
            before = by_name[source].input or "the step before" if source in by_name else ""
            yield Finding(
                level="error",
                step=step.name,
                code="needs-language-model",
                message=f"Step {step.name} needs a model that writes text ({_NEEDS_TEXT[step.kind]}), and would start "
                f"from {found}.",
                fix=f'{step.kind}(input="...") with a step whose model writes text'
                + (f", or put it before {source}" if before else ""),
            )
        if step.kind == "evaluate" or step.kind == "export":
            by_name[step.name] = step
            what[step.name] = found
            continue
        if step.kind == "post_pretrain" and method in _TASKS:
            found = f"the {method} model of step {step.name}"
        elif step.kind == "pretrain":
            found = "" if method != "mlm" else f"the encoder of step {step.name}"
        by_name[step.name] = step
        what[step.name] = found
