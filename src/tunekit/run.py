"""Running a plan, step by step, in a work folder that can be continued."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunekit import check, events, storage
from tunekit._contamination import look_for_training_data
from tunekit._gates import below, gate_error, minimum_of
from tunekit._models import Models
from tunekit._provenance import Provenance
from tunekit._report_scores import write_scores
from tunekit._rewards import STEP, bound_rewards, fitted_rewards, start_rewards
from tunekit._stream import EventStream, History
from tunekit._work import Work, prepare, step_data_facts
from tunekit._workdir import Workdir, result_files
from tunekit.artifacts import Artifact, Score
from tunekit.cancel import CancelToken
from tunekit.context import StepContext
from tunekit.errors import ArtifactError, PipelineError, PluginError, RunCancelled, StepError, TunekitError
from tunekit.events import Event, Observer
from tunekit.manifest import hardware, new_manifest
from tunekit.plan import ComponentRef, Plan, ResolvedPlan, ResolvedStep, check_seed, thaw
from tunekit.plugins.protocols import Adapter, Component, LoadedModel, Tracker
from tunekit.resolve import failure
from tunekit.results import RunHandle, RunResult, StepResult
from tunekit.session import Session, default_session

__all__ = ["execute", "start"]

logger = logging.getLogger("tunekit")

_STEP_EVENTS: Mapping[str, type[Event]] = {
    "notice": events.Notice,
    "progress": events.Progress,
    "checkpoint": events.CheckpointSaved,
}


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
        PipelineError: if ``seed`` is no seed, or another argument cannot be used.
        CheckFailed: if the plan has errors; nothing was run.
        DataError: if a data set is bad.
        ArtifactError: if the work folder cannot be used (``WorkdirLockedError``: by another run).
        StepError: if a step fails.
        RunCancelled: if ``cancel`` was set.
    """
    if workdir is not None and not os.fspath(workdir):
        raise PipelineError(
            "The workdir is empty text.", code="workdir", fix='run(workdir="runs/first"), or leave it out'
        )
    for observer in observers:
        if not callable(observer):
            raise PipelineError(f"{observer!r} cannot be called.", code="observer", fix="run(on_event=function)")
    session = session or default_session()
    if seed is not None:
        plan = replace(plan, seed=check_seed(seed))
    resolved, findings = check.check_plan(plan, session=session, objects=objects, strict=strict)
    if resolved is None or any(finding.level == "error" for finding in findings):
        raise failure(findings, "was refused and nothing was run")
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


class _Run:
    def __init__(
        self,
        resolved: ResolvedPlan,
        session: Session,
        objects: Mapping[str, Any],
        path: Path,
        observers: Sequence[Observer],
        cancel: CancelToken,
    ) -> None:
        self.resolved = resolved
        self.session = session
        self.objects = objects
        self.path = path
        self.observers = observers
        self.cancel = cancel
        self.run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.started = time.time()
        self.models = Models(resolved, session, objects)
        self.manifest: dict[str, Any] = {}

    def execute(self) -> RunResult:
        with storage.lock_workdir(self.path, {"run_id": self.run_id}), self._trackers() as trackers:
            observers = [*self.observers, *trackers, self.session.hooks.event]
            self.stream = EventStream(self.run_id, self.path / "events.jsonl", observers)
            status = "failed"
            try:
                result = self._steps()
                status = result.status
                return result
            except RunCancelled:
                status = "cancelled"
                raise
            finally:
                # A full disk must not hide the error that is on its way out.
                if self.manifest:
                    self.manifest.update(
                        status=status,
                        finished=time.time(),
                        hardware=hardware(),
                        components=self.provenance.to_data(),
                        notices=self.stream.notices,
                    )
                    with contextlib.suppress(ArtifactError):
                        self._write_manifest()
                with contextlib.suppress(ArtifactError):
                    self.stream.emit(events.RunFinished, status=status, seconds=time.time() - self.started)

    @contextlib.contextmanager
    def _trackers(self) -> Iterator[list[Observer]]:
        with contextlib.ExitStack() as stack:
            made = []
            for component, options in self.resolved.trackers:
                tracker = self._tracker(component, options)
                stack.callback(_close, tracker, component)
                made.append(tracker)
            yield [tracker.on_event for tracker in made]

    def _tracker(self, component: ComponentRef, options: Mapping[str, Any]) -> Tracker:
        try:
            made = self.session.load(component)(self.session.parse_options(component, options))
        except TunekitError as error:
            error.details.setdefault("tracker", component.id)
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"The tracker {component.label} cannot be started; nothing was run.",
                code="tracker-failed",
                asked=f'track("{component.name}", ...)',
                found=f"{type(error).__name__}: {error}",
                fix="correct its options or its setup, or leave track(...) out; details['traceback'] has the traceback",
                details={"tracker": component.id, "traceback": traceback.format_exc()},
            ) from error
        if not isinstance(made, Tracker):
            raise PluginError(
                f"{component.id} is not a tracker.",
                code="not-a-tracker",
                found=component.target,
                fix="its class needs on_event and close; see tunekit.plugins.Tracker",
                details={"tracker": component.id},
            )
        return made

    def _steps(self) -> RunResult:
        self.stream.emit(
            events.RunStarted,
            steps=tuple(step.name for step in self.resolved.steps),
            workdir=str(self.path),
            seed=self.resolved.seed,
        )
        self.workdir = Workdir(self.path, lambda code, text: self.stream.emit(events.Notice, code=code, message=text))
        work = self.work = prepare(
            self.resolved,
            self.session,
            self.objects,
            self.cancel,
            lambda step, code, text: self.stream.emit(events.Notice, step, code=code, message=text),
            self._reading(),
        )
        self._write_plan()
        self.provenance = Provenance(self.resolved, work, self.session)
        self.manifest = new_manifest(
            self.resolved,
            run_id=self.run_id,
            started=self.started,
            data={item.name: facts for item in work if (facts := step_data_facts(item)) is not None},
            components=self.provenance.to_data(),
        )
        self.manifest["step_plugins"] = self._step_plugins()
        self._write_manifest()
        self.models.pin_base()
        results: list[StepResult] = []
        for item in work:
            results.append(self._step(item, work))
            self._gate(results)
        self._write_report(self._result(results, "finished"))
        return self._result(results, "finished")

    def _result(self, steps: Sequence[StepResult], status: str) -> RunResult:
        return RunResult(
            run_id=self.run_id,
            workdir=self.path,
            seed=self.resolved.seed,
            status=status,
            steps=tuple(steps),
            notices=tuple(self.stream.notices),
        )

    def _gate(self, results: Sequence[StepResult]) -> None:
        """End the run if the last step's scores are below what was asked for. All of it is kept."""
        step = results[-1]
        missed = below(step.minimum, step.artifact.scores)
        if not missed:
            return
        error = gate_error(step.name, step.minimum, missed, str(step.folder), step.artifact.scores)
        self.stream.emit(events.Notice, step.name, code=error.code, message=f"{error.found}; asked: {error.asked}")
        self._write_report(self._result(results, "failed"))
        raise error

    def _reading(self) -> Callable[[str, int, str], None]:
        """Says once a second how far the reading of large data is."""
        last = time.monotonic()

        def read(step: str, rows: int, name: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 1.0:
                last = now
                self.stream.emit(events.Progress, step, done=rows, total=None, unit="rows", label=f"reading {name}")

        return read

    def _write_manifest(self) -> None:
        storage.write_json(self.path / "manifest.json", self.manifest)

    def _write_plan(self) -> None:
        import yaml

        for name, data in (("plan.yaml", self.resolved.plan.to_data()), ("plan.lock.yaml", self.resolved.to_data())):
            storage.write_text(self.path / name, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100))

    def _write_report(self, result: RunResult) -> None:
        from tunekit.explain import explain_resolved
        from tunekit.report import write_report

        try:
            write_report(self.path / "report.html", result, explain_resolved(self.resolved))
        # A finished training is worth more than its picture.
        except Exception as error:
            logger.warning("the report of %s could not be written", self.path, exc_info=True)
            self.stream.emit(
                events.Notice,
                code="report-failed",
                message=f"report.html could not be written ({type(error).__name__}: {error}); all else is there",
            )

    def _step(self, item: Work, work: Sequence[Work]) -> StepResult:
        self.cancel.raise_if_cancelled()
        step = item.step
        input_hash = self.models.input_hash(item)
        found = self.workdir.find(step.folder, item.key, input_hash)
        self.stream.emit(
            events.StepStarted,
            step.name,
            index=step.index,
            kind=step.kind,
            component=step.component.id,
            trains=step.trains,
            reused=found is not None,
        )
        if found is not None:
            artifact, folder, seconds = found
            self._compare_code(step, folder)
        else:
            try:
                artifact, folder, seconds = self._compute(item)
            except BaseException as error:
                with contextlib.suppress(ArtifactError):
                    self.stream.emit(events.StepFailed, step.name, error=type(error).__name__, message=str(error))
                raise
            self._tell_late(item)
        item.artifact, item.folder = artifact, folder
        self.models.published(item)
        self.models.free(item, work)
        self.manifest["steps"][step.name] = {
            "folder": folder.name,
            "reused": found is not None,
            "seconds": seconds,
            "step_kind": step.kind,
            "trains": step.trains,
            "policy": self.resolved.is_policy(step.name),
            "component": step.component.label,
            "minimum": minimum_of(step),
            **artifact.to_data(),
        }
        self._write_manifest()
        self.stream.emit(
            events.StepFinished,
            step.name,
            seconds=seconds,
            metrics=artifact.metrics,
            details={
                **artifact.details,
                "trained_parameters": artifact.trained_parameters,
                "parameters": artifact.model.parameters if artifact.model else 0,
                "scores": {name: _score_facts(score) for name, score in artifact.scores.items()},
            },
        )
        return StepResult(
            name=step.name,
            kind=step.kind,
            folder=folder,
            artifact=artifact,
            seconds=seconds,
            reused=found is not None,
            trains=step.trains,
            component=step.component.label,
            session=self.session,
            minimum=minimum_of(step),
            policy=self.resolved.is_policy(step.name),
        )

    def _tell_late(self, item: Work) -> None:
        """Say and record what was found out about large data sets only while the step read them."""
        if not item.read.unread:
            return
        item.read.tell_late(lambda code, text: self.stream.emit(events.Notice, item.name, code=code, message=text))
        self.manifest["data"][item.name] = step_data_facts(item)

    def _compare_code(self, step: ResolvedStep, folder: Path) -> None:
        """Say so if a result is reused although the code that made it was changed under the same version."""
        recorded = storage.read_json(folder / "result.json")
        before, now = recorded.get("step_plugins"), self._step_plugins()
        if isinstance(before, list) and before != now:
            self.stream.emit(
                events.Notice,
                step.name,
                code="step-plugins-changed",
                message="the plugins that wrap or take over steps were others when this result was made "
                f"({', '.join(map(str, before)) or 'none'}; now {', '.join(now) or 'none'}), and the result is reused; "
                f"to run the step again, delete {folder} or use another workdir",
            )
        for component in self.provenance.changed(step, recorded.get("code")):
            again = f"raise the version of {component.provider}" if component.version else f"delete {folder}"
            self.stream.emit(
                events.Notice,
                step.name,
                code="code-changed",
                message=f"the code of {component.label} has changed since this result was made, and the result is "
                f"reused; to run the step again, {again} or use another workdir",
            )

    def _compute(self, item: Work) -> tuple[Artifact, Path, float]:
        started = time.time()
        step = item.step
        input_hash = self.models.input_hash(item)
        partial = self.workdir.partial(step.folder, item.key, input_hash)
        storage.write_json(
            partial / "options.json", {"step": step.name, "fingerprint": item.key, "options": thaw(step.options)}
        )
        ctx = self._context(item, partial)
        start_rewards(ctx.rewards, ctx)
        if step.kind == "evaluate":
            self.models.verify(item)
        artifact = self._complete(item, self._call(item, ctx), partial)
        if artifact.scores:
            artifact = self._scored(item, artifact, ctx)
        seconds = time.time() - started
        storage.write_json(
            partial / "result.json",
            {
                **artifact.to_data(),
                "seconds": seconds,
                "input_weights_hash": input_hash,
                "code": self.provenance.code(step),
                "step_plugins": self._step_plugins(),
                "files": result_files(partial),
            },
        )
        final = self.workdir.publish(partial, step.folder)
        size = artifact.model.size_bytes if artifact.model else 0
        self.stream.emit(events.ArtifactWritten, step.name, path=str(final), size_bytes=size)
        return artifact, final, seconds

    def _scored(self, item: Work, artifact: Artifact, ctx: StepContext) -> Artifact:
        """Bind scores to the weights, look for them in the training data, and write them down."""
        self.models.verify(item)
        scores = look_for_training_data(item, artifact.scores, ctx.dir, ctx.notice, self.cancel.raise_if_cancelled)
        write_scores(scores, ctx.dir)
        return replace(artifact, scores=scores)

    def _call(self, item: Work, ctx: StepContext) -> Artifact:
        step = item.step
        try:
            with storage.storage_errors(ctx.dir, f"running step {step.name}"):
                artifact = self.session.hooks.run_step(step, ctx)
        except TunekitError as error:
            error.details.setdefault("step", step.name)
            raise
        except (Exception, SystemExit) as error:
            raise StepError(
                f"Step {step.name} failed in {step.component.label}.",
                code="step-crashed",
                found=f"{type(error).__name__}: {error}{self._others()}",
                fix="details['traceback'] has the traceback; finished steps are kept",
                details={"step": step.name, "traceback": traceback.format_exc()},
            ) from error
        if not isinstance(artifact, Artifact):
            raise PluginError(
                f"Step {step.name} gave {type(artifact).__name__} where an Artifact is due.",
                code="no-artifact",
                found=f"its component is {step.component.label}{self._others()}",
                details={"step": step.name},
            )
        return artifact

    def _step_plugins(self) -> list[str]:
        """The plugins that wrap steps or take them over, as ``provider:name``."""
        return self.session.hooks.implementers("tunekit_run_step")

    def _others(self) -> str:
        names = self._step_plugins()
        return f"\n         plugins that wrap or take over steps here: {', '.join(names)}" if names else ""

    def _complete(self, item: Work, artifact: Artifact, folder: Path) -> Artifact:
        """Fill in what only the core knows: hashes, sizes, the key, and which weights a score was measured on."""
        card = artifact.model
        scores = {name: _within(score, folder) for name, score in artifact.scores.items()}
        files = [path for score in scores.values() for path in (score.rows_path, *score.files.values())]
        for name in filter(None, (card.path if card is not None else None, artifact.adapter_path, *files)):
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise PluginError(
                    f"Step {item.name} gave a result outside of its folder.",
                    code="path-outside",
                    asked=name,
                    found=f"its component is {item.step.component.label}{self._others()}",
                    fix="write below ctx.dir, and name paths relative to it",
                    details={"step": item.name},
                )
        if card is not None:
            path = folder / card.path
            card = replace(
                card,
                weights_hash=storage.weights_digest(path),
                size_bytes=sum(file.stat().st_size for file in storage.weight_files(path)),
            )
        measured_on = self.models.input_hash(item)
        return replace(
            artifact,
            model=card,
            step=item.name,
            fingerprint=item.key,
            scores={name: replace(score, weights_hash=measured_on) for name, score in scores.items()},
        )

    def _context(self, item: Work, folder: Path) -> StepContext:
        history = History(folder / "metrics.jsonl")

        def emit(kind: str, **values: Any) -> None:
            if kind == "metrics":
                finite = history.record(**values)
                self.stream.emit(events.MetricLogged, item.name, global_step=values["global_step"], values=finite)
            else:
                self.stream.emit(_STEP_EVENTS[kind], item.name, **values)

        return StepContext(
            run_id=self.run_id,
            step=item.step,
            options=item.options,
            seed=item.seed,
            dir=folder,
            cancel=self.cancel,
            input=item.input.artifact if item.input else None,
            adapter=self._adapter(item),
            data=item.data,
            validation=item.read.validation,
            further_data=item.read.further,
            cache=self.path / "cache",
            training_data=item.training_data,
            benchmarks=item.benchmarks,
            rewards=fitted_rewards(bound_rewards(item.step.rewards, self.session, self.objects)),
            input_weights_hash=self.models.input_hash(item),
            input_path=self.models.input_path(item),
            _component=lambda: self._component(item),
            _load=lambda: self.models.get(item),
            _keep=lambda loaded: self.models.keep(item.name, loaded),
            _emit=emit,
            _load_other=self._load_other,
        )

    def _load_other(self, ref: str) -> LoadedModel:
        if ref.startswith(STEP):
            return self.models.of_step(ref.removeprefix(STEP), self.work)
        return self.session.resolve_model(ref, self.objects).load()

    def _adapter(self, item: Work) -> Adapter | None:
        adapter = item.step.adapter
        if adapter is None:
            return None
        options = self.session.parse_options(adapter.component, adapter.options)
        made = self.session.create(adapter.component, options)
        if not isinstance(made, Adapter):
            raise PluginError(
                f"{adapter.component.id} is not an adapter.",
                code="not-an-adapter",
                found=adapter.component.target,
                fix="its class needs attach, save, merge and detached; see tunekit.plugins.Adapter",
            )
        return made

    def _component(self, item: Work) -> Component:
        made = self.session.load(item.step.component)()
        if not isinstance(made, Component):
            raise PluginError(
                f"{item.step.component.id} has no run(ctx).",
                code="not-a-component",
                found=item.step.component.target,
                fix="its class needs a method run(ctx: StepContext) -> Artifact",
            )
        return made


def _close(tracker: Tracker, component: ComponentRef) -> None:
    try:
        tracker.close()
    except (Exception, SystemExit):
        logger.warning("tracker %s failed to close; its last events may be lost", component.id, exc_info=True)


def _within(score: Score, folder: Path) -> Score:
    """The score with paths relative to the step's folder, which is renamed when the step is published."""

    def relative(name: str) -> str:
        path = Path(name)
        inside = path.is_absolute() and path.resolve().is_relative_to(folder.resolve())
        return path.resolve().relative_to(folder.resolve()).as_posix() if inside else name

    return replace(
        score,
        rows_path=relative(score.rows_path) if score.rows_path else "",
        files={title: relative(path) for title, path in score.files.items()},
    )


def _score_facts(score: Any) -> dict[str, Any]:
    names = ("metric", "value", "stderr", "ci_low", "ci_high", "n", "source", "comparable", "weights_hash")
    return {name: getattr(score, name) for name in names}
