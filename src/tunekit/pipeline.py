"""The fluent builder: an immutable value that says what to do, and runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from tunekit._builder import Builder
from tunekit._values import adapter, lora, model_ref, qlora
from tunekit.errors import PipelineError
from tunekit.plan import PIPELINE_NAMES, Plan

if TYPE_CHECKING:
    from tunekit.cancel import CancelToken
    from tunekit.events import Observer
    from tunekit.plugins.protocols import Finding
    from tunekit.preview import Preview
    from tunekit.results import RunHandle, RunResult
    from tunekit.session import Session

__all__ = ["Pipeline", "adapter", "lora", "qlora"]


class Pipeline(Builder):
    """The steps that make a language model, as an immutable value.

    Each method returns a new pipeline, so pipelines branch freely. Building one touches neither disk nor plugins;
    ``check()`` finds what is wrong, all at once, before a weight is loaded.

    Steps run in order, each from the result of the step before, unless ``input="name"`` names another. Settings
    (``lora``, ``qlora``, ``adapter``, ``track``, ``seed``) hold for the whole pipeline, wherever they stand.

    A step kind of a plugin is ``step("distill", ...)``, and also a method of its own if the plugin names one
    (``StepSpec.verb``).

    Args:
        model: base model: a folder, a GGUF file, a hub id, a short name such as ``"smollm2-135m-instruct"``, the
            ``model`` of an earlier result, or ``(model, tokenizer)`` in memory. Default: an embedded small model, with
            a notice; a pipeline that begins with ``pretrain`` needs none.
        session: plugins to use where a method is not told otherwise; default: the installed ones. It is no part of
            the plan, of equality or of pickles.

    Example::

        result = (
            Pipeline(model="smollm2-135m-instruct")
            .sft(data="alpaca.json", epochs=1)
            .align(method="dpo", data="pairs.json", beta=0.1)
            .lora(r=8)
            .quantize("int4")
            .evaluate(["mmlu", "gsm8k"], data="benchmarks/")
            .run(workdir="runs/first", seed=0)
        )
    """

    __slots__ = ()

    def __init__(self, model: Any = None, *, session: Session | None = None) -> None:
        if session is not None:
            _check_session(session)
        objects: dict[str, Any] = {}
        ref = None if model is None else model_ref(model, objects)
        object.__setattr__(self, "_plan", Plan(model=ref))
        object.__setattr__(self, "_objects", objects)
        object.__setattr__(self, "_session", session)

    @property
    def plan(self) -> Plan:
        """The pipeline as plain data."""
        return self._plan

    def explain(self, format: str = "text", *, session: Session | None = None) -> str:
        """What would run: per step its input, what it trains, its component and version, data and options.

        Args:
            format: ``"text"``, ``"tree"`` or ``"json"``.
            session: plugins to use; default: the pipeline's session, else the installed ones.

        Raises:
            CheckFailed: if names or options cannot be resolved; it lists every problem.
        """
        from tunekit.explain import explain

        return explain(self._plan, objects=self._objects, session=session or self._session, format=format)

    def check(self, session: Session | None = None, *, strict: bool = False) -> list[Finding]:
        """Everything that is wrong or worth knowing, at once, before a weight is loaded. Never imports torch.

        Args:
            session: plugins to use; default: the pipeline's session, else the installed ones.
            strict: refuse embedded defaults.

        Returns:
            Findings of the levels ``error`` (a run would be refused), ``warning`` and ``note``, in the order of steps.
        """
        from tunekit.check import check_plan

        return check_plan(self._plan, objects=self._objects, session=session or self._session, strict=strict)[1]

    def preview(
        self,
        step: str | None = None,
        n: int = 3,
        *,
        workdir: str | os.PathLike[str] | None = None,
        session: Session | None = None,
        scan: int = 1000,
    ) -> Preview:
        """The exact tokens, labels and weights that a step learns, or the prompts with which it measures, and counts
        over the first rows. Loads no weights.

        Args:
            step: name of the step; default: the first that trains, or else the first that measures.
            n: rows to show token by token; of a step that measures, of each benchmark.
            workdir: folder of a run of this pipeline: a step that starts from a step that has run there is shown with
                the tokenizer of its result.
            session: plugins to use; default: the pipeline's session, else the installed ones.
            scan: rows to count; no more than these are read.

        Raises:
            CheckFailed: if names or options cannot be resolved.
            PipelineError: if there is no such step, or its trainer has no preview.
            DataError: if the data are bad, or what would be learned is harmful, with the fix: no token that is learned
                (code ``no-targets``), no end that is learned (``stop-never-trained``), two begin-of-text tokens
                (``double-bos``), tokens without an embedding (``vocabulary``).
            ArtifactError: if the tokenizer cannot be had.
        """
        from tunekit.preview import preview_plan

        return preview_plan(
            self._plan,
            objects=self._objects,
            session=session or self._session,
            step=step,
            n=n,
            workdir=workdir,
            scan=scan,
        )

    # ---------------------------------------------------------------- running it

    def run(
        self,
        workdir: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        on_event: Observer | None = None,
        cancel: CancelToken | None = None,
        strict: bool = False,
        *,
        session: Session | None = None,
        progress: bool = False,
    ) -> RunResult:
        """Check the pipeline and run it; in a folder used before, reuse what is finished and continue the rest.

        Args:
            workdir: folder of the run; default: ``runs/<fingerprint of the plan>``.
            seed: seed of the run; default: the pipeline's, else 0.
            on_event: called with every event.
            cancel: stops the run when set, leaving a resumable checkpoint.
            strict: refuse embedded defaults.
            session: plugins to use; default: the pipeline's session, else the installed ones.
            progress: draw progress bars.

        Raises:
            CheckFailed: if ``check`` has errors; nothing was run.
            DataError: if a data set is bad.
            ArtifactError: if the work folder cannot be used.
            StepError: if a step fails.
            RunCancelled: if ``cancel`` was set.
        """
        from contextlib import ExitStack

        from tunekit.run import execute

        observers = [on_event] if on_event is not None else []
        with ExitStack() as stack:
            if progress:
                from tunekit import display

                observers.append(stack.enter_context(display.progress()))
            return execute(
                self._plan,
                objects=self._objects,
                session=session or self._session,
                workdir=workdir,
                seed=seed,
                observers=observers,
                cancel=cancel,
                strict=strict,
            )

    def start(
        self,
        workdir: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        on_event: Observer | None = None,
        strict: bool = False,
        *,
        session: Session | None = None,
    ) -> RunHandle:
        """Run in a thread and return at once. The handle has ``events()``, ``cancel()`` and ``result(timeout=None)``.
        Arguments as for :meth:`run`."""
        from tunekit.run import start

        return start(
            self._plan,
            objects=self._objects,
            session=session or self._session,
            workdir=workdir,
            seed=seed,
            observers=[on_event] if on_event is not None else [],
            strict=strict,
        )

    # ---------------------------------------------------------------- storing it

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """The plan as YAML; also written to ``path`` if that is given.

        Raises:
            PipelineError: if the pipeline holds objects in memory.
        """
        from tunekit.planfile import dump_yaml, write

        return write(dump_yaml(self._storable()), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The plan as JSON; also written to ``path`` if that is given. Raises as :meth:`to_yaml` does."""
        from tunekit.planfile import dump_json, write

        return write(dump_json(self._storable()), path)

    @classmethod
    def from_yaml(cls, source: str | os.PathLike[str], *, session: Session | None = None) -> Pipeline:
        """A pipeline from a YAML file, or from YAML text.

        Paths in it are relative to the current directory, as in a script. ``session`` is as in ``Pipeline(...)``.

        Raises:
            PipelineError: if it is no valid plan, naming file and line.
            ArtifactError: if the file cannot be read.
        """
        from tunekit.planfile import load_yaml

        return cls.from_plan(load_yaml(source), session=session)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str], *, session: Session | None = None) -> Pipeline:
        """A pipeline from a JSON file, or from JSON text. Raises as :meth:`from_yaml` does."""
        from tunekit.planfile import load_json

        return cls.from_plan(load_json(source), session=session)

    @classmethod
    def from_plan(
        cls, plan: Plan, objects: Mapping[str, Any] | None = None, *, session: Session | None = None
    ) -> Pipeline:
        """A pipeline around a plan. ``objects`` holds what the plan refers to as ``object:...``."""
        if session is not None:
            _check_session(session)
        return _make(plan, dict(objects or {}), session)

    def _storable(self) -> Plan:
        if self._objects:
            kept = ", ".join(sorted({type(value).__name__ for value in self._objects.values()}))
            raise PipelineError(
                "A pipeline that holds objects in memory cannot be written to a file.",
                code="objects-in-plan",
                found=kept,
                fix="save the data or the model, and pass its path; a function that scores becomes a reward of a "
                "plugin (tunekit.plugins.reward), passed by name",
            )
        return self._plan

    # ---------------------------------------------------------------- being a value

    def __eq__(self, other: object) -> bool:
        return self._plan == other._plan if isinstance(other, Pipeline) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._plan)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self._plan, self._objects)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pipeline:
        import copy

        return _make(self._plan, copy.deepcopy(dict(self._objects), memo), self._session)

    def __repr__(self) -> str:
        from tunekit._chain import chain_text

        return chain_text(self._plan)

    # ---------------------------------------------------------------- methods of plugins

    if not TYPE_CHECKING:  # a type checker goes on to report methods that no pipeline has

        def __getattr__(self, name: str) -> Any:
            # Copying, pickling and notebooks probe for underscore names all the time; that must not load plugins. A
            # name of our own gets here only from a property that failed.
            if name.startswith("_") or name in PIPELINE_NAMES:
                raise AttributeError(f"'Pipeline' object has no attribute {name!r}")
            from tunekit._verbs import bound_verb

            return bound_verb(self, name, self._plugins())

    def __dir__(self) -> list[str]:
        from tunekit._verbs import verb_names

        return sorted({*object.__dir__(self), *verb_names(self._plugins())})

    def _plugins(self) -> Session:
        from tunekit.session import default_session

        return self._session or default_session()


def _check_session(session: Any) -> None:
    from tunekit.session import Session

    if not isinstance(session, Session):
        raise PipelineError(
            f"{session!r} is no session.", code="session", fix="Pipeline(session=Session(plugins=[...]))"
        )


def _make(plan: Plan, objects: Mapping[str, Any], session: Session | None = None) -> Pipeline:
    new = object.__new__(Pipeline)
    object.__setattr__(new, "_plan", plan)
    object.__setattr__(new, "_objects", objects)
    object.__setattr__(new, "_session", session)
    return new
