"""The data of one step: opened, selected and split, the same way for ``check``, ``preview`` and the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import storage
from tunekit.context import BenchmarkJob
from tunekit.errors import DataError, PluginError, TunekitError
from tunekit.plan import digest, thaw
from tunekit.session import NO_OBJECTS, OBJECT, Session

if TYPE_CHECKING:
    from tunekit.data import Dataset
    from tunekit.data.contamination import Benchmarks
    from tunekit.data.select import Filter, LeftOut
    from tunekit.plan import ComponentRef, ResolvedStep
    from tunekit.plugins.options import DataRequest
    from tunekit.plugins.specs import BenchmarkSpec

__all__ = [
    "PlanBenchmarks",
    "StepData",
    "benchmark_items",
    "benchmark_key",
    "benchmark_options",
    "benchmark_place",
    "entry_for",
    "further_requests",
    "holds_files",
    "main_request",
    "named",
    "open_benchmarks",
    "open_step",
    "opened",
    "own_validation",
    "validation_part",
]

HEAD = 10_000
"""Rows of a large data set that are read before the first weight is loaded; the rest is checked while it is read."""

Notify = Callable[[str, str], None]
"""``notify(code, message)``."""

Tick = Callable[[int, str], None]
"""``tick(rows, name)``: so many rows of a data set were read."""


@dataclass(kw_only=True)
class StepData:
    """What a step reads."""

    data: Dataset | None = None
    validation: Dataset | None = None
    further: Mapping[str, Dataset] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    """Rows that were left out on purpose, by rule."""

    def tell_late(self, notify: Notify) -> None:
        """What came out only while large data sets were read: bad rows, and rows that were left out on the way."""
        for data in (self.data, *self.further.values()):
            if data is None or data not in self.unread:
                continue
            skipped = data.skipped
            if skipped:
                notify("bad-rows", f"{_bad_text(skipped, data)}, among those that were read")
            left_out = [out for out in getattr(data, "left_out", ()) if out.rows]
            _tell_left_out(data, left_out, notify)

    unread: tuple[Dataset, ...] = ()
    """Data sets that were not read to their end before the step began."""


def main_request(ref: Any, spec: Any, options: Any) -> DataRequest:
    """How the step's ``data`` are to be opened."""
    from tunekit.plugins.options import DataRequest

    return DataRequest(
        ref=ref,
        accepts=tuple(getattr(spec, "data", ())),
        format=getattr(options, "format", None),
        columns=getattr(options, "columns", None),
        limit=getattr(options, "limit", None),
        on_bad_row=getattr(options, "on_bad_row", "error"),
    )


def _shared(options: Any, base: str, name: str, default: Any = None) -> Any:
    """An option of ``DataOptions`` or ``ValidatedOptions``; other options of the same name are the component's own."""
    from tunekit.plugins import options as bases

    return getattr(options, name) if isinstance(options, getattr(bases, base)) else default


def validation_part(options: Any) -> float | int | None:
    """The share or number of rows to hold out; None without one."""
    value = _shared(options, "ValidatedOptions", "validation")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def own_validation(spec: Any, options: Any) -> DataRequest | None:
    """How validation data of its own are to be opened: as the step's ``data``. None for a share, a number, or none."""
    value = _shared(options, "ValidatedOptions", "validation")
    if value is None or validation_part(options) is not None:
        return None
    from tunekit.plugins.options import DataRequest

    return DataRequest(
        ref=value,
        accepts=tuple(getattr(spec, "data", ())),
        format=getattr(options, "format", None),
        columns=getattr(options, "columns", None),
        on_bad_row=getattr(options, "on_bad_row", "error"),
    )


def further_requests(options: Any) -> dict[str, DataRequest]:
    """What ``options.further_data()`` asks for.

    Raises:
        PluginError: if the options give something else, or fail.
    """
    from tunekit.plugins.options import DataRequest

    ask = getattr(options, "further_data", None)
    if not callable(ask):
        return {}
    try:
        given = ask()
        found = dict(given)
    except TunekitError:
        raise
    except Exception as error:
        raise PluginError(
            f"{type(options).__qualname__}.further_data failed.",
            code="component-failed",
            found=f"{type(error).__name__}: {error}",
            fix="update the plugin, or report it to its authors",
        ) from error
    for name, request in found.items():
        if not isinstance(name, str) or not isinstance(request, DataRequest):
            raise PluginError(
                f"{type(options).__qualname__}.further_data gave {name!r}: {request!r:.80}.",
                code="wrong-answer",
                fix="return a mapping from names to tunekit.plugins.DataRequest",
            )
    return found


def opened(
    request: DataRequest, session: Session, objects: Mapping[str, Any] = NO_OBJECTS, option: str = ""
) -> Dataset:
    """The data set of a request. The first rows are read.

    Args:
        request: what to open.
        session: plugins and settings.
        objects: things in memory by reference.
        option: named in the error; empty for the step's ``data``.

    Raises:
        DataError: as :meth:`Session.resolve_dataset` does.
    """
    with named(option, request.ref):
        return session.resolve_dataset(
            request.ref,
            accepts=request.accepts,
            limit=request.limit,
            format=request.format,
            columns=request.columns,
            on_bad_row=request.on_bad_row,
            objects=objects,
        )


@contextlib.contextmanager
def named(option: str, ref: Any) -> Iterator[None]:
    """Puts the name of the option before an error about the data it holds."""
    try:
        yield
    except TunekitError as error:
        if option and "option" not in error.details:
            error.message = f"Option {option!r}: {error.message}"
            error.details["option"] = option
            shown = ref if not (isinstance(ref, str) and ref.startswith(OBJECT)) else "something in memory"
            error.asked = error.asked or f"{option}={shown!r:.80}"
        raise


def open_step(
    ref: Any,
    spec: Any,
    options: Any,
    *,
    seed: int,
    session: Session,
    objects: Mapping[str, Any] = NO_OBJECTS,
    benchmarks: PlanBenchmarks | None = None,
    notify: Notify = lambda code, message: None,
    tick: Tick = lambda rows, name: None,
) -> StepData:
    """Open, select and split everything that a step reads.

    Small data sets are read through, so that every bad row is found before a model is loaded. Of large ones the first
    rows are, unless a selection needs all of them; their other rows are checked while they are read.

    Args:
        ref: the step's data; None: it reads none.
        spec: the component's spec, for the row shapes it takes.
        options: the validated options.
        seed: seed of the step.
        session: plugins and settings.
        objects: things in memory by reference.
        benchmarks: those of the plan, for ``decontaminate``.
        notify: told what was left out.
        tick: called every thousand rows with their number and the name of the data set; may raise.

    Raises:
        DataError: naming file, row and reason, or the option.
    """
    further = {}
    for name, request in further_requests(options).items():
        further[name] = opened(request, session, objects, name)
        with named(name, request.ref):
            _read_through(further[name], tick)
        _tell_bad_rows(further[name], notify)
    if ref is None:
        return StepData(further=further, unread=tuple(asked for asked in further.values() if asked.counted is None))
    request = main_request(ref, spec, options)
    part, own = validation_part(options), own_validation(spec, options)
    shuffle = bool(_shared(options, "DataOptions", "shuffle"))
    dedupe = _shared(options, "DataOptions", "dedupe")
    decontaminate = bool(_shared(options, "DataOptions", "decontaminate"))
    selects = shuffle or part is not None or dedupe is not None or decontaminate
    data = opened(replace(request, limit=None) if selects else request, session, objects)
    validation = None
    if own is not None:
        validation = opened(replace(own, accepts=(data.schema,)), session, objects, "validation")
        with named("validation", own.ref):
            _read_through(validation, tick)
        _tell_bad_rows(validation, notify)
    late = tuple(asked for asked in further.values() if asked.counted is None)
    if not selects and validation is None and data.known_size():
        _read_through(data, tick)
        _tell_bad_rows(data, notify)
        none = _fruitless(data)
        _tell_left_out(data, none, notify)
        unread = late if data.counted is not None else (data, *late)
        return StepData(data=data, further=further, left_out=none, unread=unread)
    from tunekit.data import contamination, select, streams
    from tunekit.data import dedupe as copies

    identity = []
    if decontaminate:
        benchmarks = benchmarks or PlanBenchmarks((), session)
        texts = benchmarks.texts()
        identity.append(benchmarks.identity())
    if validation is not None:
        held_out = select.HeldOut(validation)
        identity.append(validation.fingerprint())

    def filters() -> list[Filter]:
        made: list[Filter] = copies.filters_for(dedupe)
        made += [contamination.Decontaminate(texts)] if decontaminate else []
        return made + ([held_out] if validation is not None else [])

    choice: dict[str, Any] = {
        "shuffle": shuffle,
        "limit": request.limit,
        "validation": part,
        "seed": seed,
        "identity": digest(identity) if identity else "",
    }

    def read(rows: int) -> None:
        tick(rows, data.name)

    endless = streams.is_endless(data, read)
    if endless:
        notify("stream", _stream_text(data, shuffle, streams.STREAM_ROWS, streams.BUFFER))
    if endless or (not selects and select.is_large(data)):
        train, held = streams.stream(data, filters=filters, **choice)
        if not endless:
            _read_through(train, tick)
        unread = (train,) if train.counted is None else ()
        return StepData(data=train, validation=validation or held, further=further, unread=(*unread, *late))
    chosen = select.select(data, filters=filters(), tick=read, **choice)
    _tell_bad_rows(chosen.train, notify)
    left_out = (*_fruitless(data), *chosen.left_out)
    _tell_left_out(data, left_out, notify, chosen.conflicts)
    return StepData(
        data=chosen.train,
        validation=validation if validation is not None else chosen.validation,
        further=further,
        left_out=left_out,
        unread=late,
    )


def _fruitless(data: Dataset) -> tuple[LeftOut, ...]:
    """Rows of the source that say nothing the step could learn: rankings of ties, votes without a majority."""
    from tunekit.data.select import LeftOut

    out = LeftOut("undecided")
    for number in sorted(data._fruitless):
        out.add(number)
    return (out,) if out.rows else ()


def _read_through(data: Dataset, tick: Tick) -> None:
    from tunekit.data.select import is_large

    large = is_large(data)
    for number, _ in enumerate(data.rows(), 1):
        if number % 1000 == 0:
            tick(number, data.name)
        if large and number >= HEAD:
            return


def _tell_bad_rows(data: Dataset, notify: Notify) -> None:
    if data.counted is None or data.on_bad_row != "skip" or not data.bad_rows:
        return
    notify("bad-rows", _bad_text(data.bad_rows, data))


def _bad_text(bad: Sequence[tuple[int, str]], data: Dataset) -> str:
    shown = "; ".join(f"row {row}: {reason}" for row, reason in bad[:5])
    return f"{len(bad)} bad rows of {data.name} were left out ({shown})"


def _stream_text(data: Dataset, shuffle: bool, rows: int, buffer: int) -> str:
    text = (
        f"{data.name} does not say how many rows it has and goes on after {rows:,}: it is read as it is used, and "
        "those first rows stand for it when it is asked whether the step must run again"
    )
    return text + (f"; shuffle mixes rows within a buffer of {buffer:,}" if shuffle else "")


def _tell_left_out(data: Dataset, left_out: Sequence[LeftOut], notify: Notify, conflicts: int = 0) -> None:
    for out in left_out:
        shown = "; ".join(_example(example) for example in out.examples)
        more = " ..." if out.rows > len(out.examples) else ""
        rows = f"{out.rows:,} row{'s' * (out.rows != 1)}"
        notify(f"left-out-{out.reason}", f"left out of {data.name}: {rows} {_WITH[out.reason]} ({shown}{more})")
    if conflicts:
        notify(
            "conflicting-targets",
            f"{conflicts:,} of the left-out rows of {data.name} have the text of a row that stayed, but another "
            "target; which of the two is right cannot be told",
        )


_WITH = {
    "undecided": "without a verdict: ties only, or no majority",
    "duplicate": "with the text of an earlier row",
    "near-duplicate": "with nearly the words of an earlier row",
    "benchmark": "with text of a benchmark in this plan",
    "held-out-copy": "with the text of a held-out row",
}


def _example(example: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in example.items() if name != "row")
    return f"row {example['row']}" + (f": {rest}" if rest else "")


def benchmark_place(spec: BenchmarkSpec, folder: Path) -> Path | None:
    """Where a benchmark's data lie in the user's data folder, or None. A folder without a file holds none."""
    return next((folder / place for place in spec.places if holds_files(folder / place)), None)


def holds_files(path: Path) -> bool:
    """Whether it is a file, or a folder with a file in it or in a folder below, hidden ones apart."""
    below = (name for _, _, names in os.walk(path, followlinks=True) for name in names)
    return path.is_file() or any(not name.startswith(".") for name in below)


def entry_for(given: Any, component: ComponentRef) -> str | None:
    """The key that means this benchmark in a mapping from benchmarks, such as ``data`` or ``settings``; None without.

    A benchmark is named as it is in ``benchmarks``: by ``dist/name``, by its short name, or by what a plugin made it
    of, such as a file, which is its name then.
    """
    return next((name for name in (component.id, component.name) if isinstance(given, Mapping) and name in given), None)


def benchmark_options(component: ComponentRef, options: Mapping[str, Any], session: Session) -> dict[str, Any]:
    """The options of an evaluate step for one of its benchmarks: ``settings`` of the benchmark and its own options put
    in, and ``data`` as it is for this one.

    Raises:
        OptionsError: if an option of its own cannot be used.
    """
    merged = {name: value for name, value in options.items() if name != "settings"}
    data = merged.get("data")
    if isinstance(data, Mapping):
        merged["data"] = data.get(entry_for(data, component) or "")
    settings = options.get("settings") or {}
    given = dict(settings.get(entry_for(settings, component) or "") or {})
    merged |= {name: given.pop(name) for name in list(given) if name in merged}
    own = session.parse_options(component, given)
    return merged if own is None else {**merged, **own.model_dump(mode="json")}


def open_benchmarks(step: ResolvedStep, session: Session) -> tuple[BenchmarkJob, ...]:
    """The benchmarks of an evaluate step, with their data."""
    jobs = []
    given = thaw(step.options) if step.benchmarks else {}
    for component in step.benchmarks:
        spec: Any = session.spec(component)
        options = benchmark_options(component, given, session)
        source, label = None, "sample"
        named = options.get("data")
        if spec.data:
            source, label = Path(spec.data), spec.data
        elif spec.brings_data:
            label = component.name
        elif named == "hub":
            label = f"hub:{spec.hub}"
        elif named is not None:
            source = Path(named).expanduser()
            if not isinstance(given.get("data"), dict):
                source = benchmark_place(spec, source) or source / spec.places[0]
            label = str(source)
        jobs.append(
            BenchmarkJob(
                component=component,
                benchmark=session.create(component),
                source=source,
                source_label=label,
                needs=spec.needs,
                options=options,
                runs_code=spec.runs_code,
            )
        )
    return tuple(jobs)


class PlanBenchmarks:
    """The questions and answers of the benchmarks that a plan measures; read when they are first asked for.

    All of a benchmark counts, whatever the ``limit`` of the evaluate step.
    """

    def __init__(self, steps: Sequence[ResolvedStep], session: Session) -> None:
        self._steps = [step for step in steps if step.benchmarks]
        self._session = session
        self._jobs: list[tuple[ResolvedStep, BenchmarkJob]] | None = None
        self._texts: Benchmarks | None = None

    @property
    def jobs(self) -> list[tuple[ResolvedStep, BenchmarkJob]]:
        """Each benchmark and the step that measures it."""
        if self._jobs is None:
            self._jobs = [(step, job) for step in self._steps for job in open_benchmarks(step, self._session)]
        return self._jobs

    def identity(self) -> str:
        """Hash over the names, versions and data of the benchmarks."""
        return digest([benchmark_key(job) for _, job in self.jobs])

    def texts(self) -> Benchmarks:
        """Their questions and answers.

        Raises:
            DataError: if there are none, or if they cannot be read.
        """
        from tunekit.data.contamination import Benchmarks

        if self._texts is None:
            if not self.jobs:
                raise DataError(
                    "decontaminate looks for the benchmarks that a plan measures, and this plan measures none.",
                    code="nothing-to-decontaminate",
                    fix='add .evaluate(["mmlu"], data="benchmarks/"), or leave decontaminate out',
                )
            texts = Benchmarks()
            read: set[str] = set()
            for step, job in self.jobs:
                if (key := digest(benchmark_key(job))) not in read:
                    read.add(key)
                    texts.add(job.component.name, benchmark_items(step, job))
            self._texts = texts
        return self._texts


def benchmark_key(job: BenchmarkJob) -> dict[str, Any]:
    """What a benchmark's questions depend on."""
    key: dict[str, Any] = {
        "component": asdict(job.component),
        "data": storage.folder_digest(job.source) if job.source is not None else job.source_label,
    }
    further = getattr(job.benchmark, "further_files", None)
    files = further(job.source, job.options) if further is not None else ()
    if files:
        key["further"] = [storage.folder_digest(path) if path.exists() else "" for path in files]
    return key


def benchmark_items(step: ResolvedStep, job: BenchmarkJob) -> Iterator[tuple[str, list[str], list[str]]]:
    """``(id, questions, answers)`` of every row: its fields, and what the model is asked without the examples."""
    try:
        rows = job.benchmark.rows(job.source, {**job.options, "limit": None})
        for number, row in enumerate(rows):
            request = job.benchmark.request(row)
            asked = request.parts[-1] if request.parts else request.context.removeprefix(request.prefix)
            fields = [value for name, value in row.items() if name != "id" and isinstance(value, str)]
            # What is asked has words of its own around the question ("Answer:"); the field of the row has not.
            question = max((text for text in fields if text.strip() and text in asked), key=len, default=asked)
            answers = [*fields, *(choice.strip() for choice in getattr(request, "choices", ()))]
            yield str(row.get("id", number)), [question, asked], answers
    except TunekitError:
        raise
    except Exception as error:
        raise PluginError(
            f"The questions of {job.component.label} cannot be read.",
            code="component-failed",
            found=f"{type(error).__name__}: {error}",
            fix="update the plugin, or leave decontaminate out",
            details={"step": step.name, "benchmark": job.component.id},
        ) from error
