"""What is found out about every step before the first weight is loaded: data, benchmarks, and the step's key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tunekit._rewards import reward_keys, step_references
from tunekit._step_data import (
    PlanBenchmarks,
    StepData,
    benchmark_key,
    further_requests,
    open_benchmarks,
    open_step,
    own_validation,
)
from tunekit.artifacts import Artifact
from tunekit.cancel import CancelToken
from tunekit.context import BenchmarkJob
from tunekit.data import Dataset
from tunekit.errors import PluginError, TunekitError
from tunekit.plan import TRAINING_KINDS, ResolvedPlan, ResolvedStep, digest, thaw
from tunekit.session import Session

__all__ = ["Work", "data_facts", "prepare", "step_data_facts"]

STEP_FORMAT = 1
"""Part of every step's key: raised when what a step writes changes its meaning."""

_NOT_IN_KEY = ("data", "checkpoint_every", "keep_checkpoints")
"""Options that do not change a step's result by themselves; data counts by content."""

Notify = Callable[[str, str, str], None]
"""``notify(step, code, message)``."""


@dataclass
class Work:
    """A step, and what was found out about it."""

    step: ResolvedStep
    spec: Any
    options: Any
    seed: int
    read: StepData
    training_data: tuple[Dataset, ...]
    benchmarks: tuple[BenchmarkJob, ...]
    input: Work | None
    key: str = ""
    """Fingerprint: equal keys, equal results."""
    artifact: Artifact | None = None
    """Set when the step is finished."""
    folder: Path | None = None
    """Set when the step is finished."""

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def data(self) -> Dataset | None:
        return self.read.data

    @property
    def input_model(self) -> Path | None:
        """Folder of the input step's model, once that step is finished."""
        source = self.input
        if source is None or source.artifact is None or source.artifact.model is None or source.folder is None:
            return None
        return source.folder / source.artifact.model.path

    @property
    def changes_model(self) -> bool:
        """Whether the step may change its input model in memory."""
        return self.step.kind in TRAINING_KINDS or getattr(self.spec, "makes", "report") == "model"


def prepare(
    resolved: ResolvedPlan,
    session: Session,
    objects: Mapping[str, Any],
    cancel: CancelToken,
    notify: Notify,
    progress: Callable[[str, int, str], None] = lambda step, rows, name: None,
) -> list[Work]:
    """Open and validate every data set and compute every key, before a model is touched.

    Args:
        resolved: the plan.
        session: plugins and settings.
        objects: things in memory by reference.
        cancel: looked at while rows are read.
        notify: told what was left out.
        progress: ``progress(step, rows, name)``: so many rows of a data set were read.

    Raises:
        DataError: naming file, row and reason.
        ArtifactError: if a folder cannot be read.
    """
    base = _base_fingerprint(resolved, session, objects)
    by_name: dict[str, Work] = {}
    benchmarks = PlanBenchmarks(resolved.steps, session)

    def tick(step: str, rows: int, name: str) -> None:
        cancel.raise_if_cancelled()
        progress(step, rows, name)

    for step in resolved.steps:
        spec = session.spec(step.component)
        options = session.parse_options(step.component, step.options)
        own_seed = getattr(options, "seed", None)
        seed = resolved.seed if own_seed is None else int(own_seed)
        source = by_name[step.input] if step.input else None
        try:
            read = open_step(
                step.data,
                spec,
                options,
                seed=seed,
                session=session,
                objects=objects,
                benchmarks=benchmarks,
                notify=partial(notify, step.name),
                tick=partial(tick, step.name),
            )
        except TunekitError as error:
            error.details.setdefault("step", step.name)
            raise
        item = Work(
            step=step,
            spec=spec,
            options=options,
            seed=seed,
            read=read,
            training_data=_lineage(source),
            benchmarks=open_benchmarks(step, session),
            input=source,
        )
        keys = {name: other.key for name, other in by_name.items()}
        item.key = _key(item, base, keys, reward_keys(step.rewards, session, objects, keys))
        by_name[step.name] = item
        if step.reason:
            notify(step.name, "method-chosen", f"{step.component.name} was chosen for the data: {step.reason}")
        for what in step.embedded:
            notify(step.name, f"embedded-{what}", _embedded_text(item, resolved, what))
    _read_questions(list(by_name.values()), session, tick)
    return list(by_name.values())


def _read_questions(work: Sequence[Work], session: Session, tick: Callable[[str, int, str], None]) -> None:
    """Read the questions of every evaluation that stands behind other work, so that what is wrong with them is said
    before that work is done. Those of the hub, and those that a benchmark finds by itself, are left to their step.

    Raises:
        DataError: naming file, row and field.
        OptionsError: if an option asks for what is not there.
    """
    read: set[str] = set()
    for number, item in enumerate(work):
        if not any(earlier.step.kind != "evaluate" for earlier in work[:number]):
            continue
        for job in item.benchmarks:
            key = digest([asdict(job.component), str(job.source), thaw(job.options)])
            if key in read or (job.source is None and job.source_label != "sample"):
                continue
            read.add(key)
            limit = job.options.get("limit")
            try:
                # One of its own: a benchmark may keep what it read.
                rows = session.create(job.component).rows(job.source, job.options)
                for row, _ in enumerate(islice(rows, limit if isinstance(limit, int) else None), 1):
                    if row % 1000 == 0:
                        tick(item.name, row, job.component.name)
            except TunekitError as error:
                error.details.setdefault("step", item.name)
                raise
            except Exception as error:
                raise PluginError(
                    f"The questions of {job.component.label} cannot be read.",
                    code="component-failed",
                    found=f"{type(error).__name__}: {error}",
                    fix="mend its data if they are what is wrong; else update the plugin, or report it to its authors",
                    details={"step": item.name, "benchmark": job.component.id},
                ) from error


def _base_fingerprint(resolved: ResolvedPlan, session: Session, objects: Mapping[str, Any]) -> str:
    if resolved.model is None:
        return "random-weights"
    source = session.resolve_model(resolved.model, objects=objects)
    try:
        return source.fingerprint()
    except (TunekitError, OSError):
        raise
    except Exception as error:
        raise PluginError(
            f"The model {resolved.model!r} cannot be identified.",
            code="component-failed",
            found=f"{type(error).__name__}: {error}",
            fix="update the plugin that reads it, or report it to its authors",
        ) from error


def _key(item: Work, base: str, keys: Mapping[str, str], rewards: Sequence[Mapping[str, Any]]) -> str:
    step = item.step
    starts_from = item.input.key if item.input else "random-weights" if step.kind == "pretrain" else base
    calibration = [data.fingerprint() for data in item.training_data] if getattr(item.spec, "calibrated", False) else []
    used = {name: keys[name] for name in step_references(thaw(step.options)) if name in keys}
    return digest(
        {
            **({"rewards": list(rewards)} if rewards else {}),
            **({"uses": used} if used else {}),
            "format": STEP_FORMAT,
            "kind": step.kind,
            "component": asdict(step.component),
            "options": _without_data(item),
            "adapter": (
                {"component": asdict(step.adapter.component), "options": thaw(step.adapter.options)}
                if step.adapter
                else None
            ),
            "seed": item.seed,
            "input": starts_from,
            "data": item.data.fingerprint() if item.data is not None else None,
            **({"validation": item.read.validation.fingerprint()} if item.read.validation is not None else {}),
            **(
                {"further_data": {name: data.fingerprint() for name, data in sorted(item.read.further.items())}}
                if item.read.further
                else {}
            ),
            "calibration": calibration,
            "benchmarks": [benchmark_key(job) for job in item.benchmarks],
        }
    )


def _without_data(item: Work) -> dict[str, Any]:
    """The options that count by their value. Data count by content, wherever they lie and whatever they are called."""
    given: dict[str, Any] = thaw(item.step.options)
    # The least scores of an evaluation judge what it measured.
    left_out = (*_NOT_IN_KEY, "min") if item.step.kind == "evaluate" else _NOT_IN_KEY
    # Rewards count by what they are bound to.
    left_out = (*left_out, "reward") if getattr(item.spec, "rewards", "") else left_out
    options = {name: value for name, value in given.items() if name not in left_out}
    if own_validation(item.spec, item.options) is not None:
        options["validation"] = "data"
    refs = {name: thaw(request.ref) for name, request in further_requests(item.options).items()}
    return {name: _blanked(value, refs) for name, value in options.items()}


def _blanked(value: Any, refs: Mapping[str, Any]) -> Any:
    """``value`` with every reference to further data replaced by its name."""
    if isinstance(value, str | list | dict):
        for name, ref in refs.items():
            if type(value) is type(ref) and value == ref:
                return f"data:{name}"
    if isinstance(value, dict):
        return {key: _blanked(item, refs) for key, item in value.items()}
    return [_blanked(item, refs) for item in value] if isinstance(value, list) else value


def _lineage(item: Work | None) -> tuple[Dataset, ...]:
    """Training data of ``item`` and of the steps before it, oldest first."""
    found: list[Dataset] = []
    while item is not None:
        if item.step.kind in TRAINING_KINDS and item.data is not None:
            found.append(item.data)
        item = item.input
    return tuple(reversed(found))


def _embedded_text(item: Work, resolved: ResolvedPlan, what: str) -> str:
    if what == "model":
        return f"no model was given: the embedded default {resolved.model} is used"
    if what == "sample":
        return "no benchmark data was given: the embedded sample is used (sample: not comparable)"
    rows = item.data.counted if item.data is not None else 0
    return f"no data was given: the embedded default {item.step.data} is used ({rows} rows)"


def step_data_facts(item: Work) -> dict[str, Any] | None:
    """What the manifest says of the data of a step; None if it reads none."""
    if item.data is None and not item.read.further:
        return None
    facts = data_facts(item.data) if item.data is not None else {}
    if item.read.validation is not None:
        facts["validation"] = data_facts(item.read.validation)
    if item.read.further:
        facts["further_data"] = {name: data_facts(data) for name, data in item.read.further.items()}
    if item.read.left_out:
        facts["left_out"] = [out.facts() for out in item.read.left_out]
    return facts


def data_facts(data: Dataset) -> dict[str, Any]:
    """What the manifest says of a data set. ``rows`` is None for a large one that was not read through."""
    rows = data.counted
    if rows is None and data.on_bad_row == "error":
        rows = data.quick_length()
    return {
        "name": data.name,
        **({"parts": data.parts} if data.parts else {}),
        "source": str(data.source) if data.source else None,
        "schema": data.schema,
        "format": data.format,
        "rows": rows,
        "fingerprint": data.fingerprint(),
        "bad_rows": [[row, reason] for row, reason in (data.skipped if data.counted is None else data.bad_rows)],
    }
