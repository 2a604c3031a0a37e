"""The label view: the exact tokens, labels and weights that a step learns, and the prompts that benchmarks ask, before
a weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunekit import storage
from tunekit._step_data import PlanBenchmarks, further_requests, main_request, open_benchmarks, open_step, opened
from tunekit.errors import ArtifactError, DataError, MissingDependencyError, PipelineError, PluginError, nearest
from tunekit.plan import TRAINING_KINDS, Plan, ResolvedPlan, ResolvedStep, thaw
from tunekit.plugins.protocols import TokenizerSource
from tunekit.plugins.views import HARMFUL, LabelTotals, ModelFacts, PreviewContext, PreviewRow
from tunekit.resolve import resolve
from tunekit.session import Session, default_session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunekit.data import Dataset

__all__ = ["Preview", "PreviewProblem", "preview_plan"]

ENOUGH = 100
"""Examples from which on a part of the data speaks for all of them."""

_LISTED = 20
_KEEP_TOKENIZER = ("post_pretrain", "sft", "reward", "align", "merge", "quantize")
"""Steps whose result has the tokenizer of their input."""


@dataclass(frozen=True, kw_only=True)
class PreviewProblem:
    """A row that cannot be trained on."""

    row: int
    """1-based number of the row in its source."""
    code: str
    """Stable identifier, such as ``no-targets``."""
    message: str
    fix: str = ""
    skipped: bool = False
    """Whether training leaves the row out; else it ends with this as its error."""

    def __str__(self) -> str:
        what = "left out" if self.skipped else "training would stop here"
        return f"row {self.row}: {self.message} ({what})" + (f". Fix: {self.fix}" if self.fix else "")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a step learns, or what it asks: the first examples token by token, and counts over more of them.

    Printed, it shows learned text between ``[`` and ``]``; in a terminal (``rich.print``) and in notebooks it has
    colours.
    """

    step: str
    """Name of the step."""
    component: str
    """Trainer that learns it, such as ``tunekit-trl/sft``."""
    data: str
    """What the rows are and where they come from."""
    rows: tuple[PreviewRow, ...]
    """The first examples."""
    totals: Mapping[str, Any]
    """``rows``, ``tokens``, ``trained_tokens``, ``masked_share``, ``cut_rows``, ``cut_tokens``,
    ``stop_trained_share`` (share of examples whose last learned token is one that generation stops at), ``bos``
    (begin-of-text tokens at the front to number of examples), ``untrained_rows`` (without a token to learn).

    Of a step that measures: ``benchmarks``, and for each ``prompts``, ``tokens``, ``longest``, ``bos``,
    ``shots_dropped`` (prompts that lose examples) and ``cut`` (prompts that lose a part of the question)."""
    scanned: int
    """Examples that ``totals`` and ``problems`` are about."""
    complete: bool
    """Whether these are all there are."""
    problems: tuple[PreviewProblem, ...] = ()
    """The first rows that cannot be trained on."""
    notes: tuple[str, ...] = field(default=())
    """What was left out or is worth knowing."""
    measures: bool = False
    """Whether these are prompts of benchmarks; the labels are then the tokens whose probability is taken."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "step": self.step,
            "component": self.component,
            "measures": self.measures,
            "data": self.data,
            "scanned": self.scanned,
            "complete": self.complete,
            "totals": dict(self.totals),
            "rows": [asdict(row) for row in self.rows],
            "problems": [asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from tunekit._preview_view import plain_text

        return plain_text(self)

    def __rich__(self) -> RenderableType:
        from tunekit._preview_view import rich_view

        return rich_view(self)

    def _repr_html_(self) -> str:
        from tunekit._preview_view import html_view

        return html_view(self)

    def table(self, number: int = 0) -> RenderableType:
        """One example as a table for ``rich.print``: position, id, token, label, weight, turn and role.

        Args:
            number: index into :attr:`rows`.
        """
        from tunekit._preview_view import token_table

        return token_table(self.rows[number])


def preview_plan(
    plan: Plan,
    *,
    objects: Mapping[str, Any],
    session: Session | None = None,
    step: str | None = None,
    n: int = 3,
    workdir: str | os.PathLike[str] | None = None,
    scan: int = 1000,
    known: tuple[Any, ModelFacts] | None = None,
) -> Preview:
    """Show what a step of ``plan`` learns, or the prompts with which it measures.

    Args:
        plan: the plan.
        objects: in-memory models and data sets by their ``object:`` reference.
        session: plugins and settings; None: the default session.
        step: name of the step; None: the first that trains, or else the first that measures.
        n: rows to show token by token; of a step that measures, of each benchmark.
        workdir: folder of a run of the plan, whose finished steps give their tokenizers.
        scan: rows to count, of each benchmark in a step that measures; no more than these are tokenized.
        known: the tokenizer and the facts of the step's input, if they are at hand.

    Raises:
        CheckFailed: if names or options of the plan are wrong.
        PipelineError: if there is no such step, or it has nothing to show.
        DataError: if the data are bad, or what would be learned is harmful: no token that is learned
            (``no-targets``), no end that is learned (``stop-never-trained``), two begin-of-text tokens
            (``double-bos``), tokens without an embedding (``vocabulary``).
        ArtifactError: if the tokenizer cannot be had.
    """
    for name, value, least in (("n", n, 0), ("scan", scan, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise PipelineError(
                f"{name} is a whole number from {least}.", code="preview", asked=f"{name}={value!r}", fix=f"{name}=3"
            )
    session = session or default_session()
    resolved = resolve(plan, session, objects)
    return _Look(resolved, session, objects, workdir, known).at(_choose(resolved, step), n=n, scan=max(scan, n))


def _choose(resolved: ResolvedPlan, name: str | None) -> ResolvedStep:
    if name is None:
        found = next((step for step in resolved.steps if step.kind in TRAINING_KINDS), None)
        found = found or next((step for step in resolved.steps if step.benchmarks), None)
        if found is None:
            raise PipelineError(
                "No step of this plan trains or measures, so there is nothing to preview.",
                code="preview",
                fix="add .sft(data=...)",
            )
        return found
    found = next((step for step in resolved.steps if step.name == name), None)
    if found is None:
        names = [step.name for step in resolved.steps]
        raise PipelineError(
            f"The plan has no step {name!r}.",
            code="unknown-step",
            asked=f"step={name!r}",
            found=", ".join(names) or "no steps",
            suggestions=nearest(name, names),
            fix=f"step={names[0]!r}" if names else "add a step",
        )
    return found


class _Look:
    """One preview."""

    def __init__(
        self,
        resolved: ResolvedPlan,
        session: Session,
        objects: Mapping[str, Any],
        workdir: str | os.PathLike[str] | None,
        known: tuple[Any, ModelFacts] | None,
    ) -> None:
        self.resolved = resolved
        self.session = session
        self.objects = objects
        self.workdir = Path(workdir) if workdir is not None else None
        self.steps = {step.name: step for step in resolved.steps}
        self.known = known
        self.notes: list[str] = []

    def at(self, step: ResolvedStep, *, n: int, scan: int) -> Preview:
        spec: Any = self.session.spec(step.component)
        show = self.session.load_preview(step.component)
        if show is None:
            raise PipelineError(
                f"{step.component.id} does not show what it "
                + ("learns." if step.kind in TRAINING_KINDS else "asks a model."),
                code="no-preview",
                asked=f"step {step.name}",
                fix="preview another step; a trainer shows its rows through TrainerSpec.preview, a step that measures "
                "its prompts through StepSpec.preview",
            )
        unmet = self.session.unmet(spec)
        if unmet:
            raise MissingDependencyError(
                f"{step.component.id} needs packages that are not there.",
                asked=", ".join(spec.requires),
                found=", ".join(map(str, unmet)),
                fix=self.session.install_line(spec, unmet),
            )
        options = self.session.parse_options(step.component, step.options)
        own_seed = getattr(options, "seed", None)
        seed = self.resolved.seed if own_seed is None else int(own_seed)
        measures = bool(step.benchmarks)
        data, further = (None, {}) if measures else self._data(step, spec, options, seed)

        def tokenizer() -> tuple[Any, ModelFacts]:
            if self.known is None:
                self.known = self._tokenizer(step)
            return self.known

        ctx = PreviewContext(
            step=step,
            options=options,
            seed=seed,
            data=cast("Dataset", ()) if data is None else data.take(scan),
            further_data=further,
            shown=n,
            benchmarks=open_benchmarks(step, self.session) if measures else (),
            scan=scan,
            _tokenizer=tokenizer,
            _note=self.notes.append,
        )
        found = _guarded(show, ctx, step)
        return self._prompts(step, found) if data is None else self._scan(step, data, ctx, found, n=n)

    def _prompts(self, step: ResolvedStep, found: Iterator[PreviewRow]) -> Preview:
        rows: list[PreviewRow] = []
        groups: dict[str, dict[str, Any]] = {}
        for row in found:
            counts = groups.setdefault(
                row.group, {"prompts": 0, "tokens": 0, "longest": 0, "bos": {}, "shots_dropped": 0, "cut": 0}
            )
            counts["prompts"] += 1
            counts["tokens"] += row.length
            counts["longest"] = max(counts["longest"], row.length)
            counts["shots_dropped"] += row.shots_dropped > 0
            counts["cut"] += row.cut > 0
            if row.bos is not None:
                counts["bos"][str(row.bos)] = counts["bos"].get(str(row.bos), 0) + 1
            if row.tokens:
                rows.append(row)
        return Preview(
            step=step.name,
            component=step.component.id,
            data=", ".join(component.name for component in step.benchmarks),
            rows=tuple(rows),
            totals={"benchmarks": groups},
            scanned=sum(counts["prompts"] for counts in groups.values()),
            complete=False,
            notes=tuple(self.notes),
            measures=True,
        )

    def _scan(
        self, step: ResolvedStep, data: Dataset, ctx: PreviewContext, found: Iterator[PreviewRow], *, n: int
    ) -> Preview:
        totals = LabelTotals()
        rows: list[PreviewRow] = []
        last: tuple[int, set[str]] = (0, set())
        shown = 0
        problems: list[PreviewProblem] = []
        untrained = 0
        for row in found:
            if row.problem:
                untrained += row.code == "no-targets"
                problem = PreviewProblem(
                    row=row.number, code=row.code, message=row.problem, fix=row.fix, skipped=row.skipped
                )
                if row.code in HARMFUL:
                    raise _bad(data, problem)
                problems.append(problem)
                continue
            totals.add(
                tokens=len(row.tokens),
                trained=row.targets,
                cut=row.cut,
                stopped=row.stopped,
                bos=row.bos,
                whole=bool(row.target),
            )
            # Parts of one example, such as chosen and rejected, have one number and other roles.
            part = row.tokens[-1].role if row.tokens else ""
            if row.number != last[0] or part in last[1]:
                last = (row.number, set())
                shown += 1
            last[1].add(part)
            if shown <= n:
                rows.append(row)
        # A preview that stopped by itself read enough; one that came to the end was given everything.
        read = ctx.data.counted
        complete = read is not None and (
            ctx.data.limit is None or read < ctx.data.limit or data.limit == ctx.data.limit
        )
        if not totals.rows:
            if problems:
                raise _bad(data, problems[0], all_rows=len(problems))
            raise DataError(f"{data.name} gives nothing to train on.", code="empty-dataset")
        # Where completions are yet to be written, prompts hold nothing to learn.
        if getattr(self.session.spec(step.component), "rewards", "") != "required":
            self._judge(totals, complete)
        return Preview(
            step=step.name,
            component=step.component.id,
            data=_described(data),
            rows=tuple(rows),
            totals={**totals.to_dict(), "untrained_rows": untrained},
            scanned=totals.rows + len(problems),
            complete=complete,
            problems=tuple(problems[:_LISTED]),
            notes=tuple(self.notes),
        )

    def _judge(self, totals: LabelTotals, complete: bool) -> None:
        harm = totals.harm()
        if harm is None:
            return
        if complete or totals.rows >= ENOUGH:
            raise harm
        self.notes.append(f"{harm.message} That is so in the {totals.rows} examples that were read; raise scan.")

    def _data(self, step: ResolvedStep, spec: Any, options: Any, seed: int) -> tuple[Dataset, Mapping[str, Dataset]]:
        from tunekit.data.select import is_large

        if step.data is None:
            raise PipelineError(f"Step {step.name} reads no data.", code="preview", fix="preview a step that trains")
        request = main_request(step.data, spec, options)
        data = opened(request, self.session, self.objects)
        chosen = [name for name in ("shuffle", "dedupe", "decontaminate", "validation") if getattr(options, name, None)]
        # Rows that are chosen or put in another order need a look at all of them.
        whole = request.limit is None or "shuffle" in chosen
        if chosen and whole and is_large(data):
            self.notes.append(
                f"{data.name} is too large to be read through for a preview: its rows are shown as they stand in it, "
                f"before {', '.join(chosen)}."
            )
        elif chosen:
            made = open_step(
                step.data,
                spec,
                options,
                seed=seed,
                session=self.session,
                objects=self.objects,
                benchmarks=PlanBenchmarks(self.resolved.steps, self.session),
                notify=lambda code, message: self.notes.append(message),
            )
            assert made.data is not None
            return made.data, made.further
        further = {
            name: opened(asked, self.session, self.objects, name) for name, asked in further_requests(options).items()
        }
        return data, further

    # ---------------------------------------------------------------- the tokenizer

    def _tokenizer(self, step: ResolvedStep) -> tuple[Any, ModelFacts]:
        """Of the step's input: of the nearest step before it that has run, else of the base model, if no step between
        the two makes another one."""
        name = step.input
        while name is not None:
            before = self.steps[name]
            folder = self._published(before)
            if folder is not None:
                return self._source(str(folder))
            if before.kind not in _KEEP_TOKENIZER or self._changes_tokenizer(before):
                raise ArtifactError(
                    f"Step {step.name} starts from the tokenizer of step {before.name}, which has not run yet.",
                    code="no-tokenizer",
                    asked=f"preview of {step.name}",
                    found=f"no finished step {before.name} in {self.workdir}" if self.workdir else "no workdir",
                    fix=f"run the plan up to {before.name}, and pass the folder of that run: preview(workdir=...)",
                )
            name = before.input
        if self.resolved.model is None:
            raise ArtifactError(
                f"Step {step.name} has no input model, so there is no tokenizer to show its data with.",
                code="no-tokenizer",
                fix="Pipeline(model=...)",
            )
        return self._source(self.resolved.model)

    @staticmethod
    def _changes_tokenizer(step: ResolvedStep) -> bool:
        """Whether options of the step add tokens."""
        return any(value for name, value in step.options.items() if name in ("extend_vocabulary", "new_tokens"))

    def _source(self, ref: str) -> tuple[Any, ModelFacts]:
        source = self.session.resolve_model(ref, objects=self.objects)
        if isinstance(source, TokenizerSource):
            return source.tokenizer()
        raise ArtifactError(
            f"{ref} does not give its tokenizer without the whole model.",
            code="no-tokenizer",
            found=f"a model source of the kind {source.kind}, without the method tokenizer()",
            fix="save the model to a folder and pass that",
        )

    def _published(self, step: ResolvedStep) -> Path | None:
        """Model folder of a step that finished in the work folder with the options it has now."""
        if self.workdir is None:
            return None
        folder = self.workdir / step.folder
        try:
            options = storage.read_json(folder / "options.json").get("options")
            model = storage.read_json(folder / "result.json").get("model") or {}
        except (ArtifactError, OSError, ValueError, AttributeError):
            return None
        path = folder / str(model.get("path", ""))
        return path if options == thaw(step.options) and model and path.is_dir() else None


def _described(data: Dataset) -> str:
    """Format and shape; without a count, which a large file would be read through for."""
    shapes = list(dict.fromkeys((data.format, data.native, data.schema)))
    limit = f", the first {data.limit:,} rows" if data.limit is not None else ""
    return f"{data.name}: {' -> '.join(shapes)}{limit}"


def _guarded(show: Any, ctx: PreviewContext, step: ResolvedStep) -> Iterator[PreviewRow]:
    from tunekit.errors import TunekitError

    try:
        for row in show(ctx):
            if not isinstance(row, PreviewRow):
                raise PluginError(
                    f"The preview of {step.component.id} gave {row!r:.80}, which is no PreviewRow.",
                    code="wrong-answer",
                    fix="yield tunekit.plugins.PreviewRow",
                )
            yield row
    except TunekitError:
        raise
    except Exception as error:
        import traceback

        raise PluginError(
            f"The preview of {step.component.id} failed.",
            code="component-failed",
            found=f"{type(error).__name__}: {error}",
            fix=f"update {step.component.provider}, or report it to its authors; details['traceback'] has the "
            "traceback",
            details={"component": step.component.id, "traceback": traceback.format_exc()},
        ) from error


def _bad(data: Dataset, problem: PreviewProblem, all_rows: int = 0) -> DataError:
    file = str(data.source or data.name)
    more = f" ({all_rows:,} rows were looked at, and none can be trained on)" if all_rows > 1 else ""
    return DataError(
        f"{data.name} row {problem.row}: {problem.message}{more}.",
        code=problem.code,
        fix=problem.fix,
        details={"file": file, "row": problem.row},
    )
