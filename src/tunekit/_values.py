"""What may stand in a plan: turning arguments into plan values."""

from __future__ import annotations

import math
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunekit._secrets import masked, refuse_passwords
from tunekit.errors import OptionsError, PipelineError
from tunekit.plan import AdapterPlan, FrozenDict

__all__ = [
    "UNSET",
    "adapter",
    "adapter_plan",
    "check_name",
    "data_ref",
    "given",
    "holds_data",
    "lora",
    "model_ref",
    "plan_value",
    "qlora",
    "reward_ref",
]


class _Unset:
    """Marks a parameter that was not passed: only what was passed gets into the plan."""

    def __repr__(self) -> str:
        return "<default>"


UNSET: Any = _Unset()

STEP_KIND = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*")
STEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def lora(
    r: int = UNSET,
    alpha: float = UNSET,
    dropout: float = UNSET,
    targets: str | Sequence[str] = UNSET,
    **options: Any,
) -> AdapterPlan:
    """LoRA for one step: ``sft(adapter=lora(r=16))``. For all steps use ``Pipeline.lora``.

    Args:
        r: rank of the update; default 8.
        alpha: the update is scaled by ``alpha / r``; default ``2 * r``.
        dropout: dropout on the adapter's input; default 0.
        targets: ``"all-linear"`` (default) or names of linear layers.
        options: further options of the adapter, such as ``rslora=True``.
    """
    return adapter("lora", r=r, alpha=alpha, dropout=dropout, targets=targets, **options)


def qlora(
    r: int = UNSET,
    alpha: float = UNSET,
    dropout: float = UNSET,
    targets: str | Sequence[str] = UNSET,
    **options: Any,
) -> AdapterPlan:
    """LoRA over a 4-bit base, for one step. Arguments as for :func:`lora`. For all steps use ``Pipeline.qlora``."""
    return adapter("qlora", r=r, alpha=alpha, dropout=dropout, targets=targets, **options)


def adapter(name: str, **options: Any) -> AdapterPlan:
    """Any adapter by name, for one step: ``sft(adapter=adapter("acme-peft/vera", r=8))``."""
    if not isinstance(name, str) or not name:
        raise PipelineError("An adapter needs a name.", asked=repr(name), fix='adapter("lora", r=8)')
    refuse_passwords({"adapter": name, **given(options)}, of="an adapter")
    return AdapterPlan(name, {key: plan_value(f"{name}.{key}", value) for key, value in given(options).items()})


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not UNSET}


def check_name(what: str, name: Any) -> None:
    if not isinstance(name, str) or not STEP_NAME.fullmatch(name):
        raise PipelineError(
            f"{what}={name!r} is no step name.",
            code="step-name",
            fix="use letters, digits, '.', '-' and '_'; the name is also the name of a folder",
        )


def plan_value(where: str, value: Any) -> Any:
    """A plan value: JSON types; paths become text, numpy numbers plain ones."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionsError(f"{where} is {value}, which no plan can hold.", code="option-type")
    if isinstance(value, Mapping):
        return {key: plan_value(f"{where}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plan_value(where, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise OptionsError(
        f"{where} is a {type(value).__name__}, which cannot be part of a plan.",
        code="option-type",
        asked=masked(repr(value))[:200],
        fix="use text, numbers, true/false, None, lists or dicts",
    )


def holds_data(kind: str, key: str) -> bool:
    return kind != "evaluate" and (key in ("data", "validation") or key.endswith("_data"))


def data_ref(value: Any, objects: dict[str, Any]) -> Any:
    """Data as the plan holds it: rows of JSON types as they are, everything else in memory by reference.

    A plain dict is looked into, as are the parts of a mixture: ``{"sst": {"data": frame}}`` keeps its form.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return plan_value("data", value)  # a share or a number of rows; what takes none says so
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple | Mapping):
        try:
            return plan_value("data", value)
        except OptionsError:
            pass  # rows with richer types, such as dates: kept in memory
    if type(value) in (dict, FrozenDict):  # no other mapping: a DatasetDict is one thing
        return {key: _data_item(key, item, objects) for key, item in value.items()}
    return _remember(value, objects)


def _data_item(key: Any, value: Any, objects: dict[str, Any]) -> Any:
    if key == "mix" and isinstance(value, list | tuple):
        return [data_ref(part, objects) for part in value]
    return data_ref(value, objects)


class Replay:
    """A one-pass iterator that can be read again: checking a pipeline looks at rows that the run needs too."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        import threading

        self._iterator = iterator
        self._kept: list[Any] = []
        self._failed: Exception | None = None
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        position = 0
        while self._reaches(position):
            yield self._kept[position]
            position += 1

    def _reaches(self, position: int) -> bool:
        with self._lock:
            if position < len(self._kept):
                return True
            if self._failed is not None:
                raise self._failed  # a generator that failed is over; a second pass must not look complete
            try:
                self._kept.append(next(self._iterator))
            except StopIteration:
                return False
            except Exception as error:
                self._failed = error
                raise
            return True


# Pipelines that were given the same iterator share what was taken from it. The replay keeps the iterator alive, so its
# id names nothing else while the entry is here.
_replays: weakref.WeakValueDictionary[int, Replay] = weakref.WeakValueDictionary()


def _replay(iterator: Iterator[Any]) -> Replay:
    found = _replays.get(id(iterator))
    if found is None:
        found = _replays[id(iterator)] = Replay(iterator)
    return found


def _remember(value: Any, objects: dict[str, Any]) -> str:
    # The pipeline keeps the object alive, so its id names nothing else meanwhile.
    ref = f"object:{type(value).__name__}-{id(value):x}"
    if ref not in objects:
        objects[ref] = _replay(value) if isinstance(value, Iterator) else value
    return ref


def model_ref(model: Any, objects: dict[str, Any]) -> str:
    if isinstance(model, str | os.PathLike):
        ref = os.fspath(model)
        if not isinstance(ref, str) or not ref:
            raise PipelineError("The model's name is empty.", code="model", asked=repr(model))
        if ref.startswith("object:"):
            raise PipelineError(
                "References to objects in memory cannot be typed.", code="model", asked=ref, fix="pass the object"
            )
        return ref
    path = getattr(model, "path", None)
    if isinstance(path, str | os.PathLike) and callable(getattr(model, "load", None)):
        return str(path)  # the model of an earlier result
    if isinstance(model, tuple | list) and len(model) == 2:
        # Known by its parts: the pair itself is made anew each time.
        ref = f"object:{type(model[0]).__name__}-{id(model[0]):x}-{id(model[1]):x}"
        objects[ref] = tuple(model)
        return ref
    return _remember(model, objects)


def reward_ref(where: str, value: Any, objects: dict[str, Any]) -> Any:
    """Rewards as the plan holds them: callables and models in memory by reference, at any place."""
    if callable(value) and not isinstance(value, Mapping | str):
        return _remember(value, objects)
    if isinstance(value, Mapping):
        made = {}
        for key, item in value.items():
            name = _remember(key, objects) if callable(key) else key
            if key == "model" and item is not None:
                made[name] = model_ref(item, objects)
            else:
                made[name] = reward_ref(f"{where}.{key}", item, objects)
        return made
    if isinstance(value, list | tuple):
        return [reward_ref(where, item, objects) for item in value]
    return plan_value(where, value)


def adapter_plan(step: str, value: Any) -> AdapterPlan | str | None:
    if value is UNSET or value == "inherit":
        return "inherit"
    if value is None or isinstance(value, AdapterPlan):
        return value
    if isinstance(value, str):
        return adapter(value)
    raise PipelineError(
        f"{step}: adapter={value!r} is no adapter.",
        code="adapter",
        fix="adapter=lora(r=8), adapter=None for full training, or leave it out to use the pipeline's",
    )
