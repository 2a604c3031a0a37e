"""What is wrong with options, in words: every problem at once, with the nearest name and what is allowed."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tunekit.errors import nearest
from tunekit.plan import canonical_json
from tunekit.plugins.protocols import Finding

__all__ = ["option_findings"]

# What other tools call the same thing; spelling alone would not find them.
ELSEWHERE = {
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "n_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "grad_accum": "gradient_accumulation",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "optim": "optimizer",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "dataset": "data",
    "train_dataset": "data",
    "max_samples": "limit",
    "lora_r": "r",
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "bits": "scheme",
    "tasks": "benchmarks",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "n_shot": "num_fewshot",
    "shots": "num_fewshot",
}

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of", "min_length": "length >="}


def option_findings(
    model: type[Any], values: Mapping[str, Any], *, step: str | None, what: str, also: Iterable[str] = ()
) -> tuple[Any, list[Finding]]:
    """Validate options.

    Args:
        model: the pydantic options model.
        values: options as JSON types.
        step: name of the step, for the findings.
        what: what the options belong to, for people, such as ``lora``; empty: the step itself.
        also: further options that may be written in the same place and are looked at elsewhere; named where an option
            is unknown.

    Returns:
        An instance of the model and no finding; or None and a finding for every option that is wrong.
    """
    from pydantic import ValidationError

    try:
        # Strict models take a JSON list for a tuple and a JSON number for a float, as a plan file has them.
        return model.model_validate_json(canonical_json(values)), []
    except ValidationError as error:
        grouped: dict[str, list[Any]] = {}
        for item in error.errors(include_url=False):
            name = str(item["loc"][0]) if item["loc"] else ""
            grouped.setdefault(name, []).append(item)
        known = list(dict.fromkeys([*model.model_fields, *also]))
        return None, [_finding(model, values, name, items, step, what, known) for name, items in grouped.items()]


def _finding(
    model: type[Any],
    values: Mapping[str, Any],
    name: str,
    items: Sequence[Any],
    step: str | None,
    what: str,
    known: list[str],
) -> Finding:
    fields = model.model_fields
    first = items[0]
    kind = first["type"]
    if not name:
        return Finding(
            level="error",
            step=step,
            code="option-value",
            message=f"The options{_of(what)} do not fit together: {_reason(first)}.",
            fix="change one of these options",
            details={"option": "", "value": None},
        )
    if kind == "extra_forbidden" and len(first["loc"]) == 1:
        return _unknown(known, name, step, what)
    allowed = _allowed(fields[name]) if name in fields else ""
    if kind == "missing" and len(first["loc"]) == 1:
        return Finding(
            level="error",
            step=step,
            code="missing-option",
            message=f"The option {name!r}{_of(what)} is missing.",
            fix=f"{name}=... ({allowed})",
            details={"option": name},
        )
    value = values.get(name)
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    inner = [part for part in first["loc"][1:] if isinstance(part, int)]
    place = name + "".join(f"[{part}]" for part in inner)
    types = {item["type"] for item in items}
    wrong_type = all(t.endswith(("_type", "_parsing", "_from_float")) for t in types)
    reasons = _joined([_reason(item) for item in items])
    close = _close_value(items, value)
    fix = f"{name}={close!r}" if close is not None else f"{name} is {allowed}" if allowed else f"change {name}"
    return Finding(
        level="error",
        step=step,
        code="option-type" if wrong_type else "option-value",
        message=f"The option {place}={shown}{_of(what)} {reasons}.",
        fix=fix,
        details={"option": name, "value": value, "allowed": allowed},
    )


def _unknown(known: list[str], name: str, step: str | None, what: str) -> Finding:
    elsewhere = ELSEWHERE.get(name.lower())
    close = (elsewhere,) if elsewhere in known else nearest(name, known)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    fix = f"write {close[0]}=..." if close else f"use one of the options{_of(what)}: {_few(known)}"
    return Finding(
        level="error",
        step=step,
        code="unknown-option",
        message=f"There is no option {name!r}{_of(what)}.{hint}",
        fix=fix,
        details={"option": name, "suggestions": list(close), "known": known},
    )


def _few(known: Sequence[str]) -> str:
    """The names, or where they are many, the first, which many components share, and the last, which are its own."""
    if len(known) <= 16:
        return ", ".join(known) or "none"
    return f"{', '.join(known[:4])}, ..., {', '.join(known[-8:])} (tunekit plugins show lists all {len(known)})"


def _of(what: str) -> str:
    return f" of {what}" if what else ""


def _reason(item: Mapping[str, Any]) -> str:
    text = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    return re.sub(r"^Input should be", "must be", text)


def _joined(reasons: Sequence[str]) -> str:
    """``must be A, or B``; a reason of other words after a colon."""
    unique = list(dict.fromkeys(reasons))
    must = [text.removeprefix("must be ") for text in unique if text.startswith("must be ")]
    other = [text for text in unique if not text.startswith("must be ")]
    parts = ["must be " + ", or ".join(must)] if must else []
    return "; ".join(parts + other) if must else "cannot be used: " + "; ".join(other)


def _close_value(items: Sequence[Any], value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    choices: list[str] = []
    for item in items:
        if item["type"] in ("literal_error", "enum"):
            choices += re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
    found = nearest(value, choices, limit=1)
    return found[0] if found else None


def _allowed(field: Any) -> str:
    """Type and bounds of a field, for people: ``int, >= 1``."""
    text = _type_text(field.annotation)
    bounds: list[str] = []
    for item in field.metadata:
        for key, sign in BOUNDS.items():
            bound = getattr(item, key, None)
            if bound is not None:
                bounds.append(f"{sign} {bound}")
    return ", ".join([text, *bounds])


def _type_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_text(get_args(annotation)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(annotation)))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(item) for item in get_args(annotation))
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and origin is None:
        return annotation.__name__
    return re.sub(r"\b(?:typing|collections\.abc|builtins)\.", "", str(annotation))
