"""Rules over a plan: everything that would go wrong, at once, before a weight is loaded.

:mod:`tunekit.resolve` finds wrong names and options; the rules here look at how steps fit together, and at what is on
disk. None imports torch, loads weights, or touches the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit._analysis import Analysis, StepAnalysis
from tunekit._registry import Entry
from tunekit._reward_rules import rewards, rows_fit
from tunekit._step_data import (
    benchmark_place,
    entry_for,
    further_requests,
    holds_files,
    named,
    opened,
    own_validation,
    validation_part,
)
from tunekit.errors import TunekitError, nearest
from tunekit.plan import TRAINING_KINDS, AdapterPlan, Plan, ResolvedPlan, thaw
from tunekit.plugins.protocols import Finding
from tunekit.plugins.specs import BenchmarkSpec, QuantizerSpec
from tunekit.resolve import DEFAULT_MODEL, analyze_plan, resolved_plan
from tunekit.session import NO_OBJECTS, OBJECT, Session, default_session

if TYPE_CHECKING:
    from tunekit.data import Dataset
    from tunekit.plugins.options import DataRequest

__all__ = ["check_plan"]

PEEK = 200
"""Rows of each data set that are looked at."""


def check_plan(
    plan: Plan,
    *,
    session: Session | None = None,
    objects: Mapping[str, Any] = NO_OBJECTS,
    strict: bool = False,
) -> tuple[ResolvedPlan | None, list[Finding]]:
    """Everything that is wrong with a plan or worth knowing.

    Args:
        plan: what to look at.
        session: plugins to use; default: the installed ones.
        objects: things in memory by reference.
        strict: refuse embedded defaults.

    Returns:
        The resolved plan, or None if there is an error; and the findings, those about the whole plan first, then in the
        order of steps.
    """
    session = session or default_session()
    analysis = analyze_plan(plan, session, objects)
    for rule in RULES:
        rule(analysis)
    _embedded(analysis, strict)
    analysis.findings.extend(session.hooks.check_plan(plan))
    return resolved_plan(analysis), analysis.sorted_findings()


# ---------------------------------------------------------------- how steps fit together


def _something_to_do(analysis: Analysis) -> None:
    if not analysis.steps:
        analysis.add("error", None, "no-steps", "The pipeline has no steps, so there is nothing to run.", ".sft(...)")


def _quantized_by(step: StepAnalysis) -> StepAnalysis | None:
    """The step whose quantized weights ``step`` starts from, if it does."""
    source = step.source
    while source is not None and source.kind == "merge":
        source = source.source
    return source if source is not None and source.kind == "quantize" else None


def _quantized_training(analysis: Analysis) -> None:
    for step in analysis.steps:
        quantizer = _quantized_by(step)
        if quantizer is None:
            continue
        scheme = quantizer.plan.options.get("scheme", "quantized")
        before = quantizer.source.name if quantizer.source else None
        plain = f', or start from the plain model: {step.kind}(input="{before}")' if before else ""
        if step.kind == "quantize":
            analysis.add(
                "error",
                step.name,
                "quantized-twice",
                f"Step {step.name} would quantize the {scheme} model of step {quantizer.name} again.",
                f"leave one of them out{plain}",
            )
        if not (step.trains or step.kind in TRAINING_KINDS) or step.kind == "pretrain":
            continue
        adapter = _wanted_adapter(analysis, step)
        if adapter is None:
            analysis.add(
                "error",
                step.name,
                "quantized-training",
                f"Step {step.name} would train all weights of the {scheme} model of step {quantizer.name}; quantized "
                "weights cannot be trained.",
                f"put {quantizer.name} after {step.name}{plain}",
                quantized_by=quantizer.name,
            )
            continue
        spec = quantizer.entry.spec if quantizer.entry else None
        if isinstance(spec, QuantizerSpec) and adapter not in spec.trainable_with:
            can = ", ".join(spec.trainable_with) or "no adapter"
            analysis.add(
                "error",
                step.name,
                "adapter-after-quantize",
                f"Step {step.name} would train {adapter} on the {scheme} model of step {quantizer.name}; "
                f"{can} can be trained on what {spec.name} makes.",
                f"put {quantizer.name} after {step.name}{plain}",
                quantized_by=quantizer.name,
            )


def _wanted_adapter(analysis: Analysis, step: StepAnalysis) -> str | None:
    """Short name of the adapter that a step asks for, even if it could not be resolved."""
    own = step.plan.adapter
    chosen = own if isinstance(own, AdapterPlan) else analysis.plan.adapter if own == "inherit" else None
    return chosen.name.rpartition("/")[2] if chosen else None


def _merge(analysis: Analysis) -> None:
    for step in analysis.steps:
        if step.kind != "merge":
            continue
        source = step.source
        if source is not None and source.trains and _wanted_adapter(analysis, source) is not None:
            continue
        what = f"step {source.name} was not trained through one" if source else "the base model has none"
        analysis.add(
            "error",
            step.name,
            "nothing-to-merge",
            f"There is no adapter to merge: {what}.",
            "leave merge() out; adapter-trained steps are merged by themselves",
        )


def _lost_model(analysis: Analysis) -> None:
    for step in analysis.steps:
        if step.kind != "pretrain":
            continue
        earlier = [other for other in analysis.steps[: step.index - 1] if other.makes_policy]
        if earlier and not any(other.source is earlier[-1] for other in analysis.steps):
            analysis.add(
                "error",
                step.name,
                "model-lost",
                f"pretrain starts from random weights, so the model of step {earlier[-1].name} would not be used.",
                f'put pretrain first, use post_pretrain, or let a step start from it: input="{earlier[-1].name}"',
            )


# ---------------------------------------------------------------- what is installed


def _packages(analysis: Analysis) -> None:
    session = analysis.session
    used: list[tuple[str | None, Any]] = []
    for step in analysis.steps:
        entries = (step.entry, step.adapter_entry, *step.benchmarks, *step.reward_entries)
        used += [(step.name, entry) for entry in entries if entry]
        if isinstance(step.data, str) and not step.data.startswith(OBJECT):
            used += [(step.name, entry) for entry in _quietly(session.registry.get, "dataset", step.data)]
    used += [(None, entry) for entry, _ in analysis.trackers]
    if analysis.model_component is not None:
        used.append((None, session.registry.find("model", analysis.model_component.id)))
    for name, entry in used:
        _has_packages(analysis, name, entry)


def _has_packages(analysis: Analysis, step: str | None, entry: Entry) -> bool:
    session = analysis.session
    try:
        unmet = session.unmet(entry.spec)
    except TunekitError as error:
        analysis.add_error(step, error)
        return False
    if unmet:
        analysis.add(
            "error",
            step,
            "missing-package",
            f"{entry.component.id} needs {', '.join(map(str, unmet))}.",
            session.install_line(entry.spec, unmet),
            requirements=[item.requirement for item in unmet],
        )
    return not unmet


def _quietly(find: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    try:
        found = find(*arguments)
    except TunekitError:
        return
    if found is not None:
        yield found


# ---------------------------------------------------------------- what is on disk


def _model(analysis: Analysis) -> None:
    starts = [step for step in analysis.steps if step.source is None and step.kind != "pretrain"]
    if analysis.model is None or not starts:
        return
    try:
        source = analysis.session.resolve_model(analysis.model, objects=analysis.objects)
        problems = list(source.problems())
    except TunekitError as error:
        if analysis.plan.model is None and error.code == "unknown-model":
            error.fix = f"Pipeline(model=...), or install a plugin that provides {DEFAULT_MODEL}"
        if not any(
            finding.code in (error.code, "ambiguous-name") and finding.step is None for finding in analysis.findings
        ):
            analysis.add_error(None, error)
        return
    for problem in problems:
        analysis.add(
            "error",
            None,
            "model-problem",
            f"The model {source.describe()} cannot be used: {problem.rstrip('.')}.",
            "mend the folder, or pass another model",
            model=analysis.model,
        )


def _data(analysis: Analysis) -> None:
    for step in analysis.steps:
        valid = step.options
        try:
            dataset = _opened_data(analysis, step)
            if dataset is None:
                continue
            brought = analysis.session.registry.get("format", dataset.format) if "/" in dataset.format else None
            if brought is None or _has_packages(analysis, step.name, brought):
                rows_fit(analysis, step, dataset, dataset.peek(PEEK + 1), PEEK)
                _enough_rows(valid, dataset)
        except TunekitError as error:
            if valid is None and (error.details.get("row") or error.details.get("field")):
                continue  # how the rows are to be read is what is wrong
            _add_data_error(analysis, step, error)


def _opened_data(analysis: Analysis, step: StepAnalysis) -> Dataset | None:
    """The data of a step, of a mixture the parts that are not on the hub; None if there are none to look at."""
    from tunekit.data import looks_like_hub_id
    from tunekit.data.mixture import without_hub

    ref, valid = step.data, step.options
    if ref is None or step.entry is None or "data" in step.embedded:
        return None
    if isinstance(ref, str) and not ref.startswith(OBJECT):
        named = _quietly(analysis.session.registry.get, "dataset", ref)
        if next(named, None) is None and looks_like_hub_id(ref):
            if getattr(valid, "format", None) is not None:
                analysis.session.data_format(valid.format)
            return None  # looking at the rows would need the network
    ref = without_hub(ref, analysis.session.dataset_component)
    if ref is None:
        return None
    return analysis.session.resolve_dataset(
        ref,
        accepts=tuple(getattr(step.entry.spec, "data", ())),
        limit=getattr(valid, "limit", None),
        format=getattr(valid, "format", None),
        columns=getattr(valid, "columns", None),
        on_bad_row=getattr(valid, "on_bad_row", "error"),
        objects=analysis.objects,
    )


def _enough_rows(options: Any, dataset: Dataset) -> None:
    """Whether rows are left to train on, where their number is known."""
    from tunekit.data.select import nothing_to_train, wanted_rows

    part, rows = validation_part(options), dataset.counted or dataset.quick_length()
    if part is not None and rows is not None and wanted_rows(part, rows) >= rows:
        raise nothing_to_train(dataset, wanted_rows(part, rows), rows, part)


def _further_data(analysis: Analysis) -> None:
    """The data sets that a step reads besides ``data``: those that its options ask for, and a validation set."""
    for step in analysis.steps:
        if step.entry is None or step.options is None:
            continue
        try:
            requests = further_requests(step.options)
        except TunekitError as error:
            analysis.add_error(step.name, error)
            continue
        own = own_validation(step.entry.spec, step.options)
        if own is not None:
            try:
                data = _opened_data(analysis, step)
            except TunekitError:
                data = None  # said by the rule about the data
            own = replace(own, accepts=(data.schema,)) if data is not None else own  # as the run opens them
        for option, request in (*requests.items(), *((("validation", own),) if own is not None else ())):
            try:
                with named(option, request.ref):
                    _peek(analysis, step, request)
            except TunekitError as error:
                _add_data_error(analysis, step, error)


def _selection(analysis: Analysis) -> None:
    """What ``dedupe`` and ``decontaminate`` need."""
    from importlib.util import find_spec

    measured = any(step.kind == "evaluate" for step in analysis.steps)
    for step in analysis.steps:
        if getattr(step.options, "decontaminate", False) and not measured:
            analysis.add(
                "error",
                step.name,
                "nothing-to-decontaminate",
                "decontaminate leaves out rows with text of the benchmarks that the plan measures, and this plan "
                "measures none.",
                'add .evaluate(["mmlu"], data="benchmarks/"), or leave decontaminate out',
                option="decontaminate",
            )
        if getattr(step.options, "dedupe", None) == "near" and find_spec("datasketch") is None:
            analysis.add(
                "error",
                step.name,
                "missing-package",
                'dedupe="near" needs datasketch.',
                'pip install "tunekit[dedupe]"',
                option="dedupe",
                requirements=["datasketch>=1.6.5,<3"],
            )


def _peek(analysis: Analysis, step: StepAnalysis, request: DataRequest) -> None:
    from tunekit.data import looks_like_hub_id
    from tunekit.data.mixture import without_hub

    session, ref = analysis.session, request.ref
    if isinstance(ref, str) and not ref.startswith(OBJECT):
        entry = session.registry.get("dataset", ref)
        if entry is not None and not _has_packages(analysis, step.name, entry):
            return
        if entry is None and looks_like_hub_id(ref):
            if request.format is not None:
                session.data_format(request.format)
            return  # looking at the rows would need the network
    ref = without_hub(ref, session.dataset_component)
    if ref is None:
        return
    dataset = opened(replace(request, ref=ref), session, analysis.objects)
    brought = session.registry.get("format", dataset.format) if "/" in dataset.format else None
    if brought is None or _has_packages(analysis, step.name, brought):
        dataset.peek(PEEK)


def _add_data_error(analysis: Analysis, step: StepAnalysis, error: TunekitError) -> None:
    if not error.fix and not error.suggestions:
        row = error.details.get("row")
        error.fix = 'mend that row, or on_bad_row="skip"' if row else "mend the file, or pass other data"
    if error.code == "wrong-shape" and (methods := _methods_for(analysis, step, error.details.get("schema"))):
        error.fix = f"use a method for such rows, {' or '.join(methods)}; or {error.fix}"
    analysis.add_error(step.name, error)


def _methods_for(analysis: Analysis, step: StepAnalysis, schema: Any) -> list[str]:
    """What else the step could be written as for rows of this shape, the methods that take it as it is first."""
    found: list[tuple[bool, str]] = []
    for entry in analysis.session.components("trainer"):
        spec = entry.spec
        # Any row has a prompt, but who brings answers does not mean to have them written anew.
        takes = tuple(shape for shape in getattr(spec, "data", ()) if shape != "prompt" or schema == "prompt")
        if isinstance(schema, str) and entry.component.stage == step.kind and takes and entry != step.entry:
            from tunekit.data.schemas import conversion

            if conversion(schema, takes) is not None:
                found.append((schema not in takes, f'{step.kind}(method="{entry.component.name}")'))
    return [text for _, text in sorted(found)][:3]


def _minimum_scores(analysis: Analysis) -> None:
    """``evaluate(min=...)`` names scores that its step will have, and means what it says."""
    for step in analysis.steps:
        given = thaw(step.plan.options.get("min")) if step.kind == "evaluate" else None
        if not isinstance(given, dict) or not step.benchmarks:
            continue
        known = {name: entry for entry in step.benchmarks for name in (entry.component.name, entry.component.id)}
        for name, least in given.items():
            # A published setup has the name of its benchmark and its own behind it.
            begins = [one for one in known if name == one or str(name).startswith(f"{one}:")]
            if not begins:
                close = nearest(str(name), known)
                analysis.add(
                    "error",
                    step.name,
                    "unknown-minimum",
                    f"min names {name!r}, which is no benchmark of step {step.name} "
                    f"({', '.join(entry.component.name for entry in step.benchmarks)}).",
                    f"write {close[0]!r}" if close else "leave it out, or add the benchmark",
                    benchmark=str(name),
                )
                continue
            benchmark = max(begins, key=len)
            if name != benchmark:
                _minimum_of_setup(analysis, step, str(name), benchmark, known[benchmark])
            if isinstance(least, int | float) and least > 1 and _is_share(analysis, known[benchmark]):
                shown = f"{least / 100:g}, not {least:g}" if least <= 100 else "between 0 and 1"
                analysis.add(
                    "warning",
                    step.name,
                    "minimum-above-one",
                    f"min asks for {name} {least:g}, and its score is a share, which is never above 1.",
                    f"{shown}?",
                    benchmark=str(name),
                )


def _minimum_of_setup(analysis: Analysis, step: StepAnalysis, name: str, benchmark: str, entry: Entry) -> None:
    values = step.values or {}
    if "variants" not in values:
        return  # this evaluator has setups of its own making
    settings = values.get("settings") or {}
    own = settings.get(entry_for(settings, entry.component) or "") or {}
    setup = name.removeprefix(f"{benchmark}:")
    if not own.get("variants", values["variants"]):
        analysis.add(
            "error",
            step.name,
            "minimum-needs-variants",
            f"min names {name!r}: published setups such as {setup!r} are measured with variants=True only.",
            f"add variants=True, or write {benchmark!r} for the benchmark's own way",
            benchmark=name,
        )
        return
    made = _made(analysis, entry)
    if made is None:
        return
    setups = [one.name for one in getattr(made, "variants", ())]
    if setup not in setups:
        close = nearest(setup, setups, limit=1)
        listed = ", ".join(setups) or "none"
        analysis.add(
            "error",
            step.name,
            "unknown-minimum",
            f"min names {name!r}, and {benchmark} has no setup {setup!r}; it has {listed}.",
            f'write "{benchmark}:{close[0]}"' if close else f"write one of them, or {benchmark!r}",
            benchmark=name,
        )


def _is_share(analysis: Analysis, entry: Entry) -> bool:
    made = _made(analysis, entry)
    try:
        facts = made.protocol() if made is not None else {}
        # gsm8k's metric is "exact_match (strict)", humaneval's "pass@1"
        metric = str(facts.get("metric", "")).split(" ")[0].partition("@")[0]
    except Exception:  # noqa: BLE001  (code of a plugin; the run says what is wrong with it)
        return False
    return metric in _SHARES


_SHARES = ("acc", "acc_norm", "exact_match", "mc1", "mc2", "overall", "pass", "recall", "win_rate")


def _made(analysis: Analysis, entry: Entry) -> Any:
    """The benchmark; None where it cannot be had here, or another tool would have to be started for it."""
    if isinstance(entry.spec, BenchmarkSpec) and entry.spec.brings_data:
        return None
    try:
        return analysis.session.create(entry.component)
    except TunekitError:
        return None


def _benchmark_data(analysis: Analysis) -> None:
    for step in analysis.steps:
        data = thaw(step.plan.options.get("data")) if step.kind == "evaluate" else None
        if isinstance(data, str) and data != "hub":
            folder = Path(data).expanduser()
            if not folder.is_dir():
                _missing_folder(analysis, step, folder, "The data folder of evaluate")
                continue
            for entry in step.benchmarks:
                assert isinstance(entry.spec, BenchmarkSpec)
                if benchmark_place(entry.spec, folder) is not None or entry.spec.data or entry.spec.brings_data:
                    continue
                own = folder / entry.spec.places[0]
                if folder.name == own.name:
                    fix = f'data="{folder.parent}": the folder above has one sub-folder per benchmark'
                    analysis.add(
                        "error",
                        step.name,
                        "missing-data",
                        f"{folder} has no sub-folder {own.name}.",
                        fix,
                        path=str(own),
                    )
                else:
                    _missing_folder(analysis, step, own, f"The data of benchmark {entry.component.name}")
        elif isinstance(data, dict):
            names = [entry.component.name for entry in step.benchmarks]
            known = {entry_for(data, entry.component) for entry in step.benchmarks}
            unfound = {finding.details.get("asked") for finding in analysis.findings if finding.step == step.name}
            for name, path in data.items():
                if name not in known and name not in unfound:
                    close = nearest(name, names, limit=1)
                    twice = name in names
                    analysis.add(
                        "error",
                        step.name,
                        "unknown-benchmark-data",
                        f"data names {name!r} a second time."
                        if twice
                        else f"data names {name!r}, which this step does not measure; it measures {', '.join(names)}.",
                        f"write {close[0]!r}" if close and not twice else "leave it out, or add the benchmark",
                        suggestions=list(close),
                    )
                if isinstance(path, str) and path != "hub" and not holds_files(Path(path).expanduser()):
                    _missing_folder(analysis, step, Path(path).expanduser(), f"The data of benchmark {name}")


def _missing_folder(analysis: Analysis, step: StepAnalysis, path: Path, what: str) -> None:
    place = path.parent
    while not place.is_dir() and place != place.parent:
        place = place.parent
    there = sorted(item.name for item in place.iterdir() if not item.name.startswith(".")) if place.is_dir() else []
    close = nearest(path.name, there) if place == path.parent and not path.is_dir() else ()
    empty = "holds no file" if path.is_dir() else "is not there"
    reason = "is a file, not a folder" if path.is_file() else empty
    hint = f" Did you mean {' or '.join(str(place / name) for name in close)}?" if close else ""
    listed = ", ".join(there[:10]) + (" ..." if len(there) > 10 else "")
    analysis.add(
        "error",
        step.name,
        "missing-data",
        f"{what}, {path}, {reason}.{hint}",
        f'use "{place / close[0]}"'
        if close
        else "put its files there, or name their folder"
        if path.is_dir()
        else f"{place} holds: {listed or 'nothing'}",
        path=str(path),
        suggestions=[str(place / name) for name in close],
    )


# ---------------------------------------------------------------- embedded defaults


def _embedded(analysis: Analysis, strict: bool) -> None:
    level = "error" if strict else "note"
    suffix = "; strict runs refuse that" if strict else ""
    for step in analysis.steps:
        for what in step.embedded:
            if what == "model":
                message = f"No model was given: the embedded default {analysis.model} is used"
                fix = "Pipeline(model=...)"
            elif what == "sample":
                message = "No benchmark data was given: the embedded samples are used, whose scores are not comparable"
                fix = 'evaluate([...], data="folder/")'
            else:
                message = f"No data was given: the embedded default {step.data} is used"
                fix = f"{step.kind}(data=...)"
            analysis.add(level, step.name, f"embedded-{what}", f"{message}{suffix}.", fix)


RULES: tuple[Callable[[Analysis], None], ...] = (
    _something_to_do,
    _quantized_training,
    _merge,
    _lost_model,
    _packages,
    _model,
    _data,
    _further_data,
    _selection,
    rewards,
    _benchmark_data,
    _minimum_scores,
)
