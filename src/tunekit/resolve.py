"""From a plan to a resolved plan: names bound to components, options validated, defaults filled in.

Nothing is given up at the first problem: :func:`analyze` collects every one of every step. It touches no disk beyond
finding plugins and the folders of benchmark data, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tunekit._analysis import Analysis, StepAnalysis, find_component, validated
from tunekit._benchmark_names import bind_benchmarks
from tunekit._registry import Entry, spec_verb
from tunekit._rewards import bind_rewards, own_options
from tunekit.errors import AmbiguousNameError, CheckFailed, PluginError, TunekitError, UnknownNameError, nearest
from tunekit.plan import (
    DEFAULT_METHODS,
    STEP_KINDS,
    TRAINING_KINDS,
    AdapterPlan,
    Plan,
    ResolvedAdapter,
    ResolvedPlan,
    ResolvedStep,
    StepPlan,
    thaw,
)
from tunekit.plugins.protocols import Finding
from tunekit.plugins.specs import AdapterSpec, QuantizerSpec, StepSpec, TrainerSpec
from tunekit.session import NO_OBJECTS, OBJECT, Session

__all__ = ["DEFAULT_MODEL", "EMBEDDED_DATA", "analyze", "analyze_plan", "resolve"]

DEFAULT_MODEL = "smollm2-135m-instruct"
"""Base model of a pipeline that names none."""

EMBEDDED_DATA: Mapping[str, str] = {
    "text": "tunekit/stdlib-text",
    "prompt_completion": "tunekit/stdlib-instructions",
    "conversation": "tunekit/stdlib-instructions",
    "preference": "tunekit/stdlib-preferences",
    "prompt": "tunekit/stdlib-instructions",
}
"""Data of a training step that names none, by the row shape it likes best."""


def analyze_plan(plan: Plan, session: Session, objects: Mapping[str, Any] = NO_OBJECTS) -> Analysis:
    """Bind and validate everything, noting every problem."""
    analysis = Analysis(plan, session, objects)
    adapter = _adapter(analysis, None, plan.adapter) if plan.adapter else None
    for index, step_plan in enumerate(plan.steps, 1):
        step = StepAnalysis(index, step_plan)
        step.entry = _component(analysis, step_plan, step)
        analysis.steps.append(step)
    for step in analysis.steps:
        _link(analysis, step)
        _choose_adapter(analysis, step, adapter)
        _options(analysis, step)
        bind_benchmarks(analysis, step)
        bind_rewards(analysis, step)
        _data(analysis, step)
    _base_model(analysis)
    if plan.adapter and not any(step.trains for step in analysis.steps) and analysis.steps:
        analysis.add(
            "error",
            None,
            "adapter-unused",
            f"The adapter setting {plan.adapter.name} applies to no step of this plan. It says how post_pretrain, sft, "
            "reward and align update weights; pretrain is always full.",
            "add such a step, or leave the setting out",
        )
    for tracker in plan.trackers:
        _tracker(analysis, tracker)
    return analysis


def analyze(
    plan: Plan, session: Session, objects: Mapping[str, Any] = NO_OBJECTS
) -> tuple[ResolvedPlan | None, list[Finding]]:
    """The resolved plan, or None if there are errors; and every finding.

    Finds wrong names, options, inputs and adapters. What needs disk (data, model folders, installed packages) is found
    by :func:`tunekit.check.check`.
    """
    analysis = analyze_plan(plan, session, objects)
    return resolved_plan(analysis), analysis.sorted_findings()


def resolve(plan: Plan, session: Session, objects: Mapping[str, Any] = NO_OBJECTS) -> ResolvedPlan:
    """The resolved plan.

    Raises:
        CheckFailed: if names, options, inputs or adapters are wrong; it lists every problem.
    """
    resolved, findings = analyze(plan, session, objects)
    if resolved is None:
        raise failure(findings, "cannot be resolved")
    return resolved


def failure(findings: list[Finding], what: str) -> CheckFailed:
    """The error for findings that refuse a plan."""
    errors = [finding for finding in findings if finding.level == "error"]
    return CheckFailed(
        f"The plan {what}: {'one error' if len(errors) == 1 else f'{len(errors)} errors'}.",
        found="\n    " + "\n    ".join(str(finding) for finding in errors),
        details={"findings": [asdict(finding) for finding in findings]},
    )


def resolved_plan(analysis: Analysis) -> ResolvedPlan | None:
    """The lock of an analysis without errors; None if it has any."""
    if analysis.failed:
        return None
    steps: list[ResolvedStep] = []
    for step in analysis.steps:
        if step.entry is None or step.values is None:
            return None
        steps.append(
            ResolvedStep(
                index=step.index,
                kind=step.kind,
                name=step.name,
                component=step.entry.component,
                options=step.values,
                input=step.source.name if step.source else None,
                adapter=step.adapter,
                trains=step.trains_label,
                data=step.data,
                embedded=tuple(step.embedded),
                benchmarks=tuple(entry.component for entry in step.benchmarks),
                rewards=tuple(step.rewards),
                reason=step.reason,
            )
        )
    return ResolvedPlan(
        plan=analysis.plan,
        model=analysis.model,
        model_component=analysis.model_component,
        steps=tuple(steps),
        seed=analysis.plan.seed or 0,
        trackers=tuple((entry.component, options) for entry, options in analysis.trackers),
    )


# ---------------------------------------------------------------- components


def _component(analysis: Analysis, step: StepPlan, found: StepAnalysis) -> Entry | None:
    registry = analysis.session.registry
    if step.kind in TRAINING_KINDS:
        try:
            key = ("trainer", step.method or _method(analysis, step, found), step.kind)
        except TunekitError as error:
            analysis.add_error(step.name, error)
            return None
    elif step.kind == "quantize":
        key = ("quantizer", step.method or DEFAULT_METHODS["quantize"], "")
    elif step.kind == "export":
        if step.method is None:
            known = ", ".join(registry.names("exporter")) or "none are installed"
            analysis.add("error", step.name, "no-format", f"export needs a format ({known}).", 'export("gguf")')
            return None
        key = ("exporter", step.method, "")
    elif step.kind in ("merge", "evaluate"):
        key = ("step", step.method or DEFAULT_METHODS[step.kind], "")
    else:
        return _plugin_step(analysis, step)
    return find_component(analysis, step.name, *key)


def _method(analysis: Analysis, step: StepPlan, found: StepAnalysis) -> str:
    """The method that the data of the step ask for, else the usual one."""
    suggested = _suggestion(analysis, step)
    if suggested is None:
        return DEFAULT_METHODS[step.kind]
    method, found.reason = suggested
    analysis.add(
        "note",
        step.name,
        "method-chosen",
        f"{method} was chosen for the data of step {step.name}: {found.reason.rstrip('.')}.",
        f'to choose yourself, write {step.kind}(method="{method}")',
        method=method,
    )
    return method


def _suggestion(analysis: Analysis, step: StepPlan) -> tuple[str, str] | None:
    """What the data answer to ``best_method(stage)``, if they can be asked: the method, and why.

    Raises:
        DataError: if no method learns from such data.
        PluginError: if they answer with something else.
    """
    ref, session = step.options.get("data"), analysis.session
    if step.kind not in ("reward", "align") or not isinstance(ref, str):
        return None
    if ref.startswith(OBJECT):
        found = analysis.objects.get(ref)
    else:
        found = session.hooks.resolve_dataset(ref) if session.registry.get("dataset", ref) is None else None
    ask = getattr(found, "best_method", None)
    if not callable(ask) or isinstance(found, type):
        return None
    try:
        answer = ask(step.kind)
    except TunekitError:
        raise
    except Exception as error:  # code of a plugin, or of the user
        raise PluginError(
            f"{type(found).__qualname__}.best_method failed.",
            code="component-failed",
            found=f"{type(error).__name__}: {error}",
            fix=f"mend it, or name the method: {step.kind}(method=...)",
        ) from error
    if answer is None:
        return None
    match answer:
        case (str() as method, str() as reason):
            return method, reason
    raise PluginError(
        f"{type(found).__qualname__}.best_method({step.kind!r}) gave {answer!r:.80}.",
        code="wrong-answer",
        fix="return a method and the reason, both text, or None",
    )


def _plugin_step(analysis: Analysis, step: StepPlan) -> Entry | None:
    if step.method is not None:
        analysis.add(
            "error",
            step.name,
            "no-method",
            f"The step {step.kind} has no methods to choose from; found method={step.method!r}.",
            "leave method= out",
        )
    try:
        return analysis.session.registry.find("step", step.kind)
    except UnknownNameError as error:
        names = (*STEP_KINDS, *analysis.session.registry.names("step"))
        close = nearest(step.kind, names)
        error.suggestions = close or error.suggestions
        error.code = "unknown-step"
        error.found = error.found.replace("known:", f"known: {', '.join(STEP_KINDS)}; from plugins:", 1)
        if close and close[0] in STEP_KINDS:
            error.fix = f"write {close[0]}"
        named = [entry for entry in analysis.session.registry.components("step") if spec_verb(entry.spec) == step.kind]
        if named:
            error.suggestions = tuple(entry.component.name for entry in named)
            error.fix = f"write {error.suggestions[0]}: {step.kind} is how a script calls this step"
        analysis.add_error(step.name, error)
    except AmbiguousNameError as error:
        analysis.add_error(step.name, error)
    return None


# ---------------------------------------------------------------- inputs


def _link(analysis: Analysis, step: StepAnalysis) -> None:
    earlier = analysis.steps[: step.index - 1]
    wanted = step.plan.input
    if step.kind == "pretrain":
        if wanted is not None:
            analysis.add(
                "error",
                step.name,
                "pretrain-input",
                f"pretrain starts from random weights and takes no input; found input={wanted!r}.",
                "use post_pretrain to go on from a model, or leave input= out",
            )
        return
    if wanted is None:
        step.source = next((other for other in reversed(earlier) if other.makes_policy), None)
        _skipped_reward(analysis, step, earlier)
        return
    found = next((other for other in earlier if other.name == wanted), None)
    if found is None:
        names = [other.name for other in analysis.steps]
        if wanted in names:
            which = "itself" if wanted == step.name else f"{wanted!r}, which comes later"
            message = f"Step {step.name} starts from {which}."
        else:
            message = f"Step {step.name} starts from {wanted!r}, but there is no such step."
        close = nearest(wanted, (other.name for other in earlier))
        usable = ", ".join(other.name for other in earlier if other.makes_model) or "none: leave input= out"
        fix = f"input={close[0]!r}" if close else f"name an earlier step that makes a model ({usable})"
        analysis.add("error", step.name, "unknown-input", message, fix, asked=wanted, suggestions=list(close))
    elif not found.makes_model:
        analysis.add(
            "error",
            step.name,
            "input-without-model",
            f"Step {step.name} starts from {wanted!r}, which makes no model but a report or an export.",
            "name a step that makes a model, or leave input= out",
            asked=wanted,
        )
    else:
        step.source = found


def _skipped_reward(analysis: Analysis, step: StepAnalysis, earlier: list[StepAnalysis]) -> None:
    """Whether a step would silently take the untouched base model where a reward model stands before it.

    A step that trains starts a policy of its own, so the base model is what it should start from.
    """
    if step.kind in TRAINING_KINDS or step.trains or (step.entry is None and step.kind not in STEP_KINDS):
        return
    made = [step.source, *step.source.lineage()] if step.source is not None else []
    if any(other.kind in TRAINING_KINDS or other.trains or other.kind == "merge" for other in made):
        return
    behind = step.source.index if step.source is not None else 0
    skipped = [other for other in earlier[behind:] if other.kind == "reward"]
    if not skipped:
        return
    reward = skipped[-1].name
    start = "the base model" if step.source is None else f"step {step.source.name}, which no step trained"
    instead = f"put {step.name} before {reward}" if step.source is None else f"input={step.source.name!r}"
    analysis.add(
        "error",
        step.name,
        "reward-model-skipped",
        f"Step {step.name} starts from {start}, not from the reward model of step {reward}.",
        f"input={reward!r} for the reward model; for the model before it, {instead}",
        asked=step.name,
        suggestions=[reward],
    )


def _base_model(analysis: Analysis) -> None:
    plan = analysis.plan
    pretrains = [step for step in analysis.steps if step.kind == "pretrain"]
    starts = [step for step in analysis.steps if step.source is None and step.kind != "pretrain"]
    if plan.model is not None and pretrains:
        for step in pretrains:
            analysis.add(
                "error",
                step.name,
                "pretrain-with-model",
                f"pretrain starts from random weights, so the model {_shown(plan.model)} would not be used.",
                "use post_pretrain to train this model further, or leave model= out",
            )
    analysis.model = plan.model
    if plan.model is None and starts:
        analysis.model = DEFAULT_MODEL
        for step in starts:
            step.embedded.insert(0, "model")
    if analysis.model is None or analysis.model.startswith(OBJECT):
        return
    try:
        analysis.model_component = analysis.session.model_component(analysis.model)
    except AmbiguousNameError as error:
        analysis.add_error(None, error)


def _shown(ref: str) -> str:
    return "in memory" if ref.startswith(OBJECT) else repr(ref)


# ---------------------------------------------------------------- adapters


_Adapter = tuple[Entry | None, ResolvedAdapter | None]


def _adapter(analysis: Analysis, step: str | None, plan: AdapterPlan) -> _Adapter:
    entry = find_component(analysis, step, "adapter", plan.name)
    if entry is None:
        return None, None
    _, values = validated(analysis, step, plan.name, entry, plan.options, plan.name)
    if values is None:
        return entry, None
    spec = entry.spec
    label = spec.label if isinstance(spec, AdapterSpec) else "{name}"
    try:
        label = label.format(**{**values, "name": spec.name})
    except (KeyError, IndexError, ValueError, AttributeError):
        label = spec.name
    return entry, ResolvedAdapter(component=entry.component, options=values, label=label)


def _choose_adapter(analysis: Analysis, step: StepAnalysis, setting: _Adapter | None) -> None:
    own = step.plan.adapter
    if not step.trains:
        if step.entry is None and step.kind not in STEP_KINDS:
            return  # unknown step: whether it trains is unknown too
        if isinstance(own, AdapterPlan) and step.kind == "pretrain":
            analysis.add(
                "error",
                step.name,
                "adapter-pretrain",
                f"pretrain trains a new model from random weights, so it is always full; found adapter={own.name}.",
                "leave adapter= out here, or use post_pretrain on an existing model",
            )
        elif isinstance(own, AdapterPlan):
            analysis.add(
                "error",
                step.name,
                "adapter-unused",
                f"{step.kind} does not train through adapters; found adapter={own.name}.",
                "leave adapter= out here",
            )
        return
    if isinstance(own, AdapterPlan):
        chosen: _Adapter | None = _adapter(analysis, step.name, own)
    else:
        chosen = setting if own == "inherit" else None
    if chosen is None:
        return
    if step.entry is not None and isinstance(step.entry.spec, TrainerSpec) and not step.entry.spec.adapters:
        analysis.add(
            "error",
            step.name,
            "adapter-unsupported",
            f"{step.entry.component.id} cannot train through an adapter.",
            f"{step.kind}(adapter=None) for full training of this step, or another method",
        )
        return
    step.adapter_entry, step.adapter = chosen


# ---------------------------------------------------------------- options, data, benchmarks


def _options(analysis: Analysis, step: StepAnalysis) -> None:
    if step.entry is None:
        return
    adapter = step.adapter.component.name if step.adapter else None
    step.options, step.values = validated(analysis, step.name, "", step.entry, own_options(analysis, step), adapter)
    spec = step.entry.spec
    scheme = step.plan.options.get("scheme")
    if isinstance(spec, QuantizerSpec) and spec.schemes and isinstance(scheme, str) and scheme not in spec.schemes:
        if step.values is None and any(
            finding.step == step.name and finding.details.get("option") == "scheme" for finding in analysis.findings
        ):
            return
        close = nearest(scheme, spec.schemes, limit=1)
        analysis.add(
            "error",
            step.name,
            "unknown-scheme",
            f"{step.entry.component.id} does not write {scheme!r}; it writes {', '.join(spec.schemes)}.",
            f'quantize("{close[0] if close else spec.schemes[0]}")',
            option="scheme",
            suggestions=list(close),
        )


def _data(analysis: Analysis, step: StepAnalysis) -> None:
    if step.entry is None or step.kind == "evaluate":
        return
    spec = step.entry.spec
    given = step.plan.options.get("data")
    if given is not None:
        step.data = given
        return
    if isinstance(spec, QuantizerSpec):
        if spec.calibrated and not any(
            other.kind in TRAINING_KINDS and other.data is not None for other in step.lineage()
        ):
            step.data = EMBEDDED_DATA["text"]
            step.embedded.append("data")
        return
    accepted = spec.data if isinstance(spec, TrainerSpec | StepSpec) else ()
    if not accepted:
        return
    default = next((EMBEDDED_DATA[shape] for shape in accepted if shape in EMBEDDED_DATA), None)
    if default is None:
        analysis.add(
            "error",
            step.name,
            "no-data",
            f"Step {step.name} needs data ({' or '.join(accepted)}), and no embedded data has this shape.",
            f"{step.kind}(data=...)",
        )
        return
    step.data = default
    step.embedded.append("data")


def _tracker(analysis: Analysis, tracker: Mapping[str, Any]) -> None:
    name = tracker["name"]
    entry = find_component(analysis, None, "tracker", name)
    if entry is None:
        return
    options = {key: thaw(value) for key, value in tracker.items() if key != "name"}
    _, values = validated(analysis, None, f"track({name})", entry, options, None)
    if values is not None:
        analysis.trackers.append((entry, values))
