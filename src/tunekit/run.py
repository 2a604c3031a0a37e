"""Running a plan: work folder, reuse and resume, the model handed from step to step, events."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunekit import check, events, storage
from tunekit.artifacts import Artifact
from tunekit.cancel import CancelToken
from tunekit.context import BenchmarkJob, StepContext
from tunekit.data import Dataset
from tunekit.errors import (
    ArtifactError,
    CheckFailed,
    DataError,
    PluginError,
    RunCancelled,
    StepError,
    TunekitError,
)
from tunekit.events import Event, Observer
from tunekit.manifest import hardware, new_manifest
from tunekit.plan import TRAINING_KINDS, Plan, ResolvedPlan, ResolvedStep, digest, thaw
from tunekit.plugins.protocols import Component, LoadedModel, ModelSource
from tunekit.results import RunHandle, RunResult, StepResult, read_metrics
from tunekit.session import Session, default_session

__all__ = ["execute", "start"]

logger = logging.getLogger("tunekit")

STEP_FORMAT = 1
"""Part of every step's key: raised when what a step writes changes its meaning."""


def execute(
    plan: Plan,
    *,
    objects: Mapping[str, Any],
    session: Session | None = None,
    workdir: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    observers: Sequence[Observer] = (),
    cancel: CancelToken | None = None,
    strict: bool = False,
) -> RunResult:
    """Run ``plan`` and return its result.

    Finished steps of an earlier run in the same work folder are reused when nothing that they depend on has changed,
    and an unfinished one continues from its last good checkpoint.

    Args:
        plan: what to run.
        objects: in-memory models and data sets by their ``object:`` reference.
        session: plugins and settings; None: the default session.
        workdir: folder of the run; None: ``runs/<fingerprint of the plan>`` below the current directory.
        seed: seed of the run; None: the plan's, else 0.
        observers: called with every event, in order.
        cancel: stops the run when set.
        strict: refuse embedded defaults.

    Raises:
        CheckFailed: if the plan has errors; nothing was run.
        DataError: if a data set is bad.
        ArtifactError: if the work folder cannot be used (``WorkdirLockedError``: by another run).
        StepError: if a step fails.
        RunCancelled: if ``cancel`` was set.
    """
    session = session or default_session()
    if seed is not None:
        plan = replace(plan, seed=seed)
    resolved, findings = check.check(plan, session=session, objects=objects, strict=strict)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors or resolved is None:
        raise CheckFailed(
            f"The plan has {len(errors)} error{'s' if len(errors) != 1 else ''}; nothing was run.",
            found="\n  " + "\n  ".join(str(finding) for finding in errors),
            details={"findings": [asdict(finding) for finding in findings]},
        )
    folder = Path(workdir) if workdir is not None else Path("runs") / plan.fingerprint()[:8]
    return _Run(resolved, session, objects, folder.absolute(), observers, cancel or CancelToken()).execute()


def start(
    plan: Plan,
    *,
    objects: Mapping[str, Any],
    session: Session | None = None,
    workdir: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    observers: Sequence[Observer] = (),
    strict: bool = False,
) -> RunHandle:
    """Run ``plan`` in a thread; the arguments are those of :func:`execute`."""

    def work(cancel: CancelToken, put: Observer) -> RunResult:
        return execute(
            plan,
            objects=objects,
            session=session,
            workdir=workdir,
            seed=seed,
            observers=(put, *observers),
            cancel=cancel,
            strict=strict,
        )

    return RunHandle(work)


_STEP_EVENTS: Mapping[str, type[Event]] = {
    "notice": events.Notice,
    "progress": events.Progress,
    "checkpoint": events.CheckpointSaved,
}


class _EventStream:
    """Numbers events, writes ``events.jsonl``, and tells the observers. An observer that raises is reported once."""

    def __init__(self, run_id: str, path: Path, observers: Sequence[Observer], session: Session) -> None:
        self._run_id = run_id
        self._path = path
        self._observers = list(observers)
        self._session = session
        self._failed: set[int] = set()
        self._seq = 0
        self.notices: list[str] = []

    def emit(self, cls: type[Event], step: str | None = None, **values: Any) -> None:
        event = cls(run_id=self._run_id, seq=self._seq, time=time.time(), step=step, **values)
        self._seq += 1
        if isinstance(event, events.Notice):
            self.notices.append(f"{step}: {event.message}" if step else event.message)
        with (
            storage.disk_errors(self._path, "writing events.jsonl"),
            self._path.open("a", encoding="utf-8") as stream,
        ):
            stream.write(_json_line(events.event_to_dict(event)))
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                if id(observer) not in self._failed:
                    self._failed.add(id(observer))
                    logger.warning("observer %r failed and is ignored from now on in the log", observer, exc_info=True)
        self._session.hooks.event(event)


def _json_line(data: Any) -> str:
    import json

    return json.dumps(data, ensure_ascii=False, default=str) + "\n"


@dataclass
class _Work:
    """A step with what was found out about it before anything ran."""

    step: ResolvedStep
    spec: Any
    options: Any
    data: Dataset | None
    training_data: tuple[Dataset, ...]
    benchmarks: tuple[BenchmarkJob, ...]
    input: _Work | None
    key: str = ""
    """Fingerprint of the step."""
    artifact: Artifact | None = None
    folder: Path | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.step.name


class _Run:
    def __init__(
        self,
        resolved: ResolvedPlan,
        session: Session,
        objects: Mapping[str, Any],
        workdir: Path,
        observers: Sequence[Observer],
        cancel: CancelToken,
    ) -> None:
        self.resolved = resolved
        self.session = session
        self.objects = objects
        self.workdir = workdir
        self.cancel = cancel
        self.run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.observers = list(observers)
        self.live: dict[str, LoadedModel] = {}
        self.claimed: set[Path] = set()
        self.started = time.time()

    # ---------------------------------------------------------------- whole run

    def execute(self) -> RunResult:
        with storage.lock_workdir(self.workdir, {"run_id": self.run_id}), self._trackers() as trackers:
            self.events = _EventStream(
                self.run_id, self.workdir / "events.jsonl", [*self.observers, *trackers], self.session
            )
            return self._locked()

    @contextlib.contextmanager
    def _trackers(self) -> Iterator[list[Observer]]:
        made = [self.session.load(component)(thaw(options)) for component, options in self.resolved.trackers]
        try:
            yield [tracker.on_event for tracker in made]
        finally:
            for tracker in made:
                try:
                    tracker.close()
                except Exception:
                    logger.warning("tracker %r failed to close", tracker, exc_info=True)

    def _locked(self) -> RunResult:
        status = "failed"
        self.manifest: dict[str, Any] = {}
        try:
            self._emit(
                events.RunStarted,
                steps=tuple(step.name for step in self.resolved.steps),
                workdir=str(self.workdir),
                seed=self.resolved.seed,
            )
            work = self._prepare()
            self._write_plan()
            self.manifest = new_manifest(
                self.resolved,
                run_id=self.run_id,
                started=self.started,
                data={item.name: _data_facts(item.data) for item in work if item.data is not None},
            )
            self._write_manifest()
            results = [self._step(item, work) for item in work]
            status = "finished"
            result = RunResult(
                run_id=self.run_id,
                workdir=self.workdir,
                seed=self.resolved.seed,
                status=status,
                steps=tuple(results),
                notices=tuple(self.events.notices),
            )
            self._write_report(result)
            return result
        except RunCancelled:
            status = "cancelled"
            raise
        finally:
            if self.manifest:
                self.manifest.update(status=status, finished=time.time(), hardware=hardware())
                self.manifest["notices"] = list(self.events.notices)
            with contextlib.suppress(ArtifactError):
                if self.manifest:
                    self._write_manifest()
                self._emit(events.RunFinished, status=status, seconds=time.time() - self.started)

    def _emit(self, cls: type[Event], step: str | None = None, **values: Any) -> None:
        self.events.emit(cls, step, **values)

    def _write_manifest(self) -> None:
        storage.write_json(self.workdir / "manifest.json", self.manifest)

    def _write_plan(self) -> None:
        import yaml

        for name, data in (
            ("plan.yaml", self.resolved.plan.to_data()),
            ("plan.lock.yaml", self.resolved.to_data()),
        ):
            storage.write_text(
                self.workdir / name, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
            )

    def _write_report(self, result: RunResult) -> None:
        from tunekit.explain import explain_resolved
        from tunekit.report import write_report

        write_report(self.workdir / "report.html", result, explain_resolved(self.resolved))

    # ---------------------------------------------------------------- before the first weight is loaded

    def _prepare(self) -> list[_Work]:
        """Open and validate every data set, and compute every key, before a model is touched."""
        by_name: dict[str, _Work] = {}
        for step in self.resolved.steps:
            spec = self.session.spec(step.component)
            model = self.session.options_model(step.component)
            options = model.model_validate(thaw(step.options)) if model is not None else None
            source = by_name[step.input] if step.input else None
            item = _Work(
                step=step,
                spec=spec,
                options=options,
                data=self._open_data(step, spec, options),
                training_data=_lineage(source),
                benchmarks=self._open_benchmarks(step),
                input=source,
            )
            item.key = self._key(item)
            by_name[step.name] = item
            for what in step.embedded:
                self._emit(events.Notice, step.name, code=f"embedded-{what}", message=self._embedded_text(item, what))
        return list(by_name.values())

    def _embedded_text(self, item: _Work, what: str) -> str:
        if what == "model":
            return f"no model was given: the embedded default {self.resolved.model} is used"
        if what == "sample":
            return (
                "no benchmark data was given: the embedded sample is used; sample: not comparable with published scores"
            )
        return f"no data was given: the embedded default {item.step.data} is used ({len(item.data or ())} rows)"

    def _open_data(self, step: ResolvedStep, spec: Any, options: Any) -> Dataset | None:
        if step.data is None:
            return None
        dataset = self.session.resolve_dataset(
            step.data,
            accepts=tuple(getattr(spec, "data", ())),
            limit=getattr(options, "limit", None),
            format=getattr(options, "format", None),
            columns=getattr(options, "columns", None),
            on_bad_row=getattr(options, "on_bad_row", "error"),
            objects=self.objects,
        )
        rows = 0
        for rows, _ in enumerate(dataset.rows(), 1):
            if rows % 10_000 == 0:
                self.cancel.raise_if_cancelled()
        if rows == 0:
            raise DataError(
                f"The data of step {step.name} has no rows.",
                code="empty-dataset",
                asked=f"data={step.data!r}",
                fix="pass a data set with at least one row",
                details={"file": str(dataset.source or dataset.name), "step": step.name},
            )
        if dataset.bad_rows:
            shown = "; ".join(f"row {row}: {reason}" for row, reason in dataset.bad_rows[:5])
            self._emit(
                events.Notice,
                step.name,
                code="bad-rows",
                message=f"{len(dataset.bad_rows)} bad rows of {dataset.name} were left out ({shown})",
            )
        return dataset

    def _open_benchmarks(self, step: ResolvedStep) -> tuple[BenchmarkJob, ...]:
        jobs = []
        data = thaw(step.options).get("data") if step.benchmarks else None
        for component in step.benchmarks:
            spec = self.session.spec(component)
            source, label = None, "sample"
            named = data.get(component.name) if isinstance(data, dict) else data
            if named == "hub":
                label = f"hub:{spec.hub}"
            elif named is not None:
                source = Path(named) if isinstance(data, dict) else Path(named) / (spec.folder or component.name)
                label = str(source)
            jobs.append(
                BenchmarkJob(
                    component=component,
                    benchmark=self.session.load(component)(),
                    source=source,
                    source_label=label,
                    needs=spec.needs,
                )
            )
        return tuple(jobs)

    def _key(self, item: _Work) -> str:
        step = item.step
        options = {
            name: value for name, value in thaw(step.options).items() if name not in ("data", "keep_checkpoints")
        }
        if item.input is not None:
            source = item.input.key
        elif step.kind == "pretrain" or self.resolved.model is None:
            source = "random-weights"
        else:
            source = self._base().fingerprint()
        return digest(
            {
                "format": STEP_FORMAT,
                "kind": step.kind,
                "component": asdict(step.component),
                "options": options,
                "adapter": (
                    {"component": asdict(step.adapter.component), "options": thaw(step.adapter.options)}
                    if step.adapter
                    else None
                ),
                "seed": self._seed(item),
                "input": source,
                "data": item.data.fingerprint() if item.data is not None else None,
                "calibration": (
                    [data.fingerprint() for data in item.training_data]
                    if getattr(item.spec, "calibrated", False)
                    else None
                ),
                "benchmarks": [
                    {
                        "component": asdict(job.component),
                        "data": storage.folder_digest(job.source) if job.source is not None else job.source_label,
                    }
                    for job in item.benchmarks
                ],
            }
        )

    def _seed(self, item: _Work) -> int:
        own = getattr(item.options, "seed", None)
        return self.resolved.seed if own is None else int(own)

    def _base(self) -> ModelSource:
        if self.resolved.model is None:
            raise StepError("The pipeline has no base model.", code="no-model", fix="Pipeline(model=...)")
        return self.session.resolve_model(self.resolved.model, objects=self.objects)

    # ---------------------------------------------------------------- one step

    def _step(self, item: _Work, work: Sequence[_Work]) -> StepResult:
        self.cancel.raise_if_cancelled()
        step = item.step
        started = time.time()
        found = self._find_finished(item)
        self._emit(
            events.StepStarted,
            step.name,
            index=step.index,
            kind=step.kind,
            component=step.component.id,
            trains=step.trains,
            reused=found is not None,
        )
        seconds = 0.0
        if found is not None:
            item.artifact, item.folder, seconds = found
        else:
            try:
                item.artifact, item.folder = self._run_step(item, started)
            except BaseException as error:
                with contextlib.suppress(ArtifactError):
                    self._emit(events.StepFailed, step.name, error=type(error).__name__, message=str(error))
                raise
            seconds = time.time() - started
        self.claimed.add(item.folder)
        self._forget(item, work)
        self.manifest["steps"][step.name] = {
            "folder": str(item.folder),
            "fingerprint": item.key,
            "reused": found is not None,
            "seconds": seconds,
            **item.artifact.to_data(),
        }
        self._write_manifest()
        self._emit(
            events.StepFinished,
            step.name,
            seconds=seconds,
            metrics=item.artifact.metrics,
            details={
                **item.artifact.details,
                "trained_parameters": item.artifact.trained_parameters,
                "parameters": item.artifact.model.parameters if item.artifact.model else 0,
                "scores": {
                    name: {
                        "value": score.value,
                        "ci_low": score.ci_low,
                        "ci_high": score.ci_high,
                        "n": score.n,
                        "comparable": score.comparable,
                        "source": score.source,
                    }
                    for name, score in item.artifact.scores.items()
                },
            },
        )
        return StepResult(
            name=step.name,
            kind=step.kind,
            folder=item.folder,
            artifact=item.artifact,
            seconds=seconds,
            reused=found is not None,
            trains=step.trains,
            component=f"{step.component.id} {step.component.version}",
            session=self.session,
        )

    def _run_step(self, item: _Work, started: float) -> tuple[Artifact, Path]:
        step = item.step
        final = self.workdir / step.folder
        partial = self.workdir / ".partial" / f"{step.folder}-{item.key[:8]}"
        with storage.disk_errors(partial, f"preparing step {step.name}"):
            partial.mkdir(parents=True, exist_ok=True)
        storage.write_json(
            partial / "options.json",
            {"step": step.name, "fingerprint": item.key, "options": thaw(step.options)},
        )
        item.history = read_metrics(partial / "metrics.jsonl")
        if step.kind in ("quantize", "export"):
            # They read from disk, often in a process of their own: the memory is better theirs.
            self.live.clear()
        ctx = self._context(item, partial)
        artifact = self._call(item, ctx)
        artifact = self._complete(item, artifact, partial)
        storage.write_json(partial / "result.json", {**artifact.to_data(), "seconds": time.time() - started})
        self._set_aside(final)
        storage.publish(partial, final)
        if step.name in self.live and artifact.model is not None:
            self.live[step.name].path = final / artifact.model.path
            self.live[step.name].weights_hash = artifact.model.weights_hash
        self._drop_stale_partials(step)
        self._emit(
            events.ArtifactWritten,
            step.name,
            path=str(final),
            size_bytes=artifact.model.size_bytes if artifact.model else 0,
        )
        return artifact, final

    def _call(self, item: _Work, ctx: StepContext) -> Artifact:
        step = item.step
        try:
            with storage.disk_errors(ctx.dir, f"running step {step.name}"):
                artifact = self.session.hooks.run_step(step, ctx)
        except TunekitError as error:
            error.details.setdefault("step", step.name)
            raise
        except Exception as error:
            raise StepError(
                f"Step {step.name} failed in {step.component.id} {step.component.version}: {error}",
                code="step-crashed",
                found=f"{type(error).__name__}: {error}",
                fix="the traceback is in details['traceback'] and in the log; finished steps are kept",
                details={"step": step.name, "traceback": traceback.format_exc()},
            ) from error
        if not isinstance(artifact, Artifact):
            raise PluginError(
                f"{step.component.id} returned {type(artifact).__name__} where an Artifact is due.",
                code="no-artifact",
                details={"step": step.name},
            )
        return artifact

    def _complete(self, item: _Work, artifact: Artifact, folder: Path) -> Artifact:
        """Fill in what only the core knows: hashes, sizes, the key, and which weights a score was measured on."""
        card = artifact.model
        if card is not None:
            path = folder / card.path
            card = replace(
                card,
                weights_hash=storage.weights_digest(path),
                size_bytes=sum(file.stat().st_size for file in storage.weight_files(path)),
            )
        measured_on = self._input_hash(item)
        return replace(
            artifact,
            model=card,
            step=item.name,
            fingerprint=item.key,
            scores={name: replace(score, weights_hash=measured_on) for name, score in artifact.scores.items()},
        )

    def _input_hash(self, item: _Work) -> str:
        if item.input is not None and item.input.artifact is not None and item.input.artifact.model is not None:
            return item.input.artifact.model.weights_hash
        if item.step.kind != "pretrain" and self.resolved.model is not None:
            return self._base().fingerprint()
        return ""

    def _context(self, item: _Work, folder: Path) -> StepContext:
        adapter = None
        if item.step.adapter is not None:
            component = item.step.adapter.component
            model = self.session.options_model(component)
            values = thaw(item.step.adapter.options)
            target = self.session.load(component)
            adapter = target(model.model_validate(values) if model is not None else values)
        return StepContext(
            run_id=self.run_id,
            step=item.step,
            options=item.options,
            seed=self._seed(item),
            dir=folder,
            cancel=self.cancel,
            input=item.input.artifact if item.input else None,
            adapter=adapter,
            data=item.data,
            training_data=item.training_data,
            benchmarks=item.benchmarks,
            input_weights_hash=self._input_hash(item),
            input_path=self._input_path(item),
            _component=lambda: self._component(item),
            _load=lambda: self._load(item),
            _keep=lambda loaded: self.live.__setitem__(item.name, loaded),
            _emit=lambda kind, **values: self._from_step(item, folder, kind, values),
        )

    def _component(self, item: _Work) -> Component:
        made = self.session.load(item.step.component)()
        if not isinstance(made, Component):
            raise PluginError(
                f"{item.step.component.id} has no run(ctx).",
                code="not-a-component",
                found=item.step.component.target,
                fix="its class needs a method run(ctx: StepContext) -> Artifact",
            )
        return made

    def _input_path(self, item: _Work) -> Path | None:
        source = item.input
        if source is not None and source.artifact is not None and source.artifact.model is not None and source.folder:
            return source.folder / source.artifact.model.path
        if item.step.kind == "pretrain" or self.resolved.model is None:
            return None
        base = self._base()
        return Path(base.ref).absolute() if base.kind == "folder" else None

    # ---------------------------------------------------------------- models in memory

    def _load(self, item: _Work) -> LoadedModel:
        """The step's input model: the one in memory, else from disk after its hash was compared."""
        owner = item.input.name if item.input is not None else "(base)"
        changes_it = item.step.kind in TRAINING_KINDS or getattr(item.spec, "makes", "report") == "model"
        loaded = self.live.pop(owner, None) if changes_it else self.live.get(owner)
        if loaded is None:
            loaded = self._from_disk(item)
            if not changes_it:
                self.live[owner] = loaded
        return loaded

    def _from_disk(self, item: _Work) -> LoadedModel:
        if item.input is None:
            if item.step.kind == "pretrain":
                raise StepError("pretrain starts from random weights; there is no input model.", code="no-model")
            return self._base().load()
        artifact, folder = item.input.artifact, item.input.folder
        if artifact is None or artifact.model is None or folder is None:
            raise StepError(
                f"Step {item.name} needs a model, but its input {item.input.name} made a report.",
                code="no-model",
                fix=f"name another step: {item.step.kind}(input=...)",
            )
        path = folder / artifact.model.path
        found = storage.weights_digest(path)
        if found != artifact.model.weights_hash:
            raise ArtifactError(
                f"The weights in {path} are not the ones that step {item.input.name} wrote.",
                code="weights-changed",
                asked=f"weights {artifact.model.weights_hash[:12]}",
                found=f"weights {found[:12]}",
                fix=f"restore the folder, or delete {folder} to run {item.input.name} again",
            )
        loaded = self.session.resolve_model(str(path)).load()
        loaded.path, loaded.weights_hash = path, found
        return loaded

    def _forget(self, item: _Work, work: Sequence[_Work]) -> None:
        """Free the models that no later step starts from."""
        later = [other for other in work if other.step.index > item.step.index]
        needed = {other.input.name if other.input else "(base)" for other in later if other.step.kind != "pretrain"}
        for name in list(self.live):
            if name not in needed:
                del self.live[name]

    # ---------------------------------------------------------------- finished work of earlier runs

    def _find_finished(self, item: _Work) -> tuple[Artifact, Path, float] | None:
        final = self.workdir / item.step.folder
        others = [*sorted(self.workdir.glob("*/")), *sorted((self.workdir / "superseded").glob("*/"))]
        for folder in [final, *(other for other in others if other != final and other not in self.claimed)]:
            record = folder / "result.json"
            if not record.is_file():
                continue
            try:
                data = storage.read_json(record)
                artifact = Artifact.from_data(data)
            except ArtifactError as error:
                self._emit(
                    events.Notice,
                    item.name,
                    code="damaged-result",
                    message=f"{record} is damaged and is not used: {error.message}",
                )
                continue
            if artifact.fingerprint != item.key:
                continue
            problem = self._damage(folder, artifact)
            if problem:
                self._emit(
                    events.Notice,
                    item.name,
                    code="damaged-artifact",
                    message=f"{problem}; the step runs again",
                )
                continue
            if folder != final:
                self._set_aside(final)
                with storage.disk_errors(final, f"moving {folder.name}"):
                    folder.rename(final)
            return artifact, final, float(data.get("seconds", 0.0))
        return None

    def _damage(self, folder: Path, artifact: Artifact) -> str:
        if artifact.model is None:
            missing = [
                score.rows_path
                for score in artifact.scores.values()
                if score.rows_path and not (folder / score.rows_path).is_file()
            ]
            return f"{folder / missing[0]} is missing" if missing else ""
        path = folder / artifact.model.path
        try:
            found = storage.weights_digest(path)
        except ArtifactError as error:
            return error.message
        return (
            "" if found == artifact.model.weights_hash else f"the weights in {path} are not the ones that were written"
        )

    def _set_aside(self, final: Path) -> None:
        """Move a finished step that no longer fits out of the way; nothing finished is deleted."""
        if not final.exists():
            return
        old = ""
        with contextlib.suppress(ArtifactError):
            old = str(storage.read_json(final / "result.json").get("fingerprint", ""))[:8]
        target = self.workdir / "superseded" / f"{final.name}-{old or 'damaged'}"
        with storage.disk_errors(target, f"moving {final.name} aside"):
            target.parent.mkdir(exist_ok=True)
            number = 1
            while target.exists():
                number += 1
                target = target.with_name(f"{final.name}-{old or 'damaged'}-{number}")
            final.rename(target)

    def _drop_stale_partials(self, step: ResolvedStep) -> None:
        import shutil

        for folder in (self.workdir / ".partial").glob(f"{step.folder}-????????"):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.workdir / ".partial").rmdir()

    # ---------------------------------------------------------------- what a step says

    def _from_step(self, item: _Work, folder: Path, kind: str, values: dict[str, Any]) -> None:
        if kind == "metrics":
            self._record(item, folder, **values)
        else:
            self._emit(_STEP_EVENTS[kind], item.name, **values)

    def _record(self, item: _Work, folder: Path, global_step: int, values: Mapping[str, float]) -> None:
        """Append to the step's history. After a resume, entries of steps that run again are replaced."""
        path = folder / "metrics.jsonl"
        entry = {"step": global_step, **values}
        kept = [old for old in item.history if old["step"] < global_step or global_step == 0]
        with storage.disk_errors(path, "writing metrics.jsonl"):
            if len(kept) < len(item.history):
                storage.write_text(path, "".join(_json_line(old) for old in kept))
            with path.open("a", encoding="utf-8") as stream:
                stream.write(_json_line(entry))
        item.history = [*kept, entry]
        finite = {
            name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        self._emit(events.MetricLogged, item.name, global_step=global_step, values=finite)


def _lineage(item: _Work | None) -> tuple[Dataset, ...]:
    """Training data of ``item`` and of the steps before it, oldest first."""
    found: list[Dataset] = []
    while item is not None:
        if item.step.kind in TRAINING_KINDS and item.data is not None:
            found.append(item.data)
        item = item.input
    return tuple(reversed(found))


def _data_facts(data: Dataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "source": str(data.source) if data.source else None,
        "schema": data.schema,
        "format": data.format,
        "rows": len(data),
        "fingerprint": data.fingerprint(),
        "bad_rows": [[row, reason] for row, reason in data.bad_rows],
    }
