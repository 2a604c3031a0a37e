"""What is found out about a plan while it is bound: steps, components, findings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tunekit._option_errors import option_findings
from tunekit._registry import Entry
from tunekit._secrets import refuse_passwords
from tunekit.errors import TunekitError, nearest
from tunekit.plan import (
    ADAPTED_KINDS,
    MODEL_KINDS,
    STEP_KINDS,
    TRAINING_KINDS,
    ComponentRef,
    Plan,
    ResolvedAdapter,
    ResolvedReward,
    StepPlan,
)
from tunekit.plugins.protocols import Finding
from tunekit.plugins.specs import StepSpec
from tunekit.session import Session

__all__ = ["Analysis", "StepAnalysis", "find_component", "validated"]


@dataclass
class StepAnalysis:
    """What was found out about one step. Fields stay None where the plan is wrong."""

    index: int
    plan: StepPlan
    entry: Entry | None = None
    options: Any = None
    """Instance of the options model."""
    values: dict[str, Any] | None = None
    """Every option as JSON types; None if they cannot be used."""
    source: StepAnalysis | None = None
    """The step that this one starts from."""
    adapter: ResolvedAdapter | None = None
    adapter_entry: Entry | None = None
    data: Any = None
    embedded: list[str] = field(default_factory=list)
    benchmarks: list[Entry] = field(default_factory=list)
    rewards: list[ResolvedReward] = field(default_factory=list)
    reward_entries: list[Entry] = field(default_factory=list)
    """The components of ``rewards``; callables have none."""
    reason: str = ""
    """Why this component, where the data chose it."""

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def kind(self) -> str:
        return self.plan.kind

    @property
    def makes_model(self) -> bool:
        """Whether a later step can start from it."""
        if self.kind in STEP_KINDS:
            return self.kind in MODEL_KINDS
        return not isinstance(self.entry.spec, StepSpec) or self.entry.spec.makes == "model" if self.entry else True

    @property
    def makes_policy(self) -> bool:
        """Whether it makes a model that writes: neither a reward model nor one made of one."""
        return self.makes_model and not any(step.kind == "reward" for step in (self, *self.lineage()))

    @property
    def trains(self) -> bool:
        """Whether it updates weights in a way that an adapter setting can change."""
        if self.kind in STEP_KINDS:
            return self.kind in ADAPTED_KINDS
        return self.entry is not None and isinstance(self.entry.spec, StepSpec) and self.entry.spec.adapters

    @property
    def trains_label(self) -> str:
        """``full``, an adapter's label, or ``-``."""
        if self.adapter is not None:
            return self.adapter.label
        return "full" if self.trains or self.kind in TRAINING_KINDS else "-"

    def lineage(self) -> list[StepAnalysis]:
        """The steps that lead here, nearest first, without this one."""
        found: list[StepAnalysis] = []
        step = self.source
        while step is not None:
            found.append(step)
            step = step.source
        return found


@dataclass
class Analysis:
    """What was found out about a plan."""

    plan: Plan
    session: Session
    objects: Mapping[str, Any]
    steps: list[StepAnalysis] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    model: str | None = None
    model_component: ComponentRef | None = None
    trackers: list[tuple[Entry, dict[str, Any]]] = field(default_factory=list)

    def add(self, level: str, step: str | None, code: str, message: str, fix: str = "", **details: Any) -> None:
        """Note a finding."""
        self.findings.append(Finding(level=level, step=step, code=code, message=message, fix=fix, details=details))

    def add_error(self, step: str | None, error: TunekitError) -> None:
        """Note an error that was raised as a finding."""
        parts = [error.message]
        if error.suggestions:
            parts.append(f"Did you mean {' or '.join(error.suggestions)}?")
        if error.found:
            found = "; ".join(line.strip() for line in error.found.splitlines())
            parts.append(f"({found})")
        fix = error.fix or (f"use {error.suggestions[0]!r}" if error.suggestions else "")
        details = {**error.details, "asked": error.asked, "suggestions": list(error.suggestions)}
        self.add("error", step, error.code, " ".join(parts), fix, **details)

    @property
    def failed(self) -> bool:
        """Whether something was found that a run would be refused for."""
        return any(finding.level == "error" for finding in self.findings)

    def sorted_findings(self) -> list[Finding]:
        """Findings in the order of steps, those about the whole plan first; errors before notes; none twice."""
        order = {step.name: step.index for step in self.steps}
        levels = {"error": 0, "warning": 1, "note": 2}
        unique: list[Finding] = []
        for finding in self.findings:
            if finding not in unique:
                unique.append(finding)
        return sorted(unique, key=lambda f: (order.get(f.step or "", 0), levels.get(f.level, 3)))


def find_component(analysis: Analysis, step: str | None, kind: str, name: str, stage: str = "") -> Entry | None:
    """The component of a name, or None with the reason noted."""
    try:
        if kind == "benchmark":
            return analysis.session.benchmark(name)
        return analysis.session.registry.find(kind, name, stage)
    except TunekitError as error:
        analysis.add_error(step, error)
        return None


def validated(
    analysis: Analysis,
    step: str | None,
    what: str,
    entry: Entry,
    values: Mapping[str, Any],
    adapter: str | None,
    also: Iterable[str] = (),
) -> tuple[Any, dict[str, Any] | None]:
    """The options instance and its values, or None for the values if something is wrong. ``also``: names that are
    known beside the options of ``entry``."""
    component = entry.component
    try:
        model = analysis.session.options_model(component)
    except TunekitError as error:
        analysis.add_error(step, error)
        return None, None
    if model is None:
        for name in values:
            close = nearest(name, tuple(also), limit=1)
            analysis.add(
                "error",
                step,
                "unknown-option",
                f"There is no option {name!r}{f' of {what}' if what else ''}: {component.id} takes none"
                + (" of its own." if also else "."),
                f"write {close[0]!r}" if close else "leave it out",
                option=name,
                suggestions=list(close),
            )
        return None, None if values else {}
    try:
        options, findings = option_findings(model, values, step=step, what=what, also=also)
        if options is None:
            analysis.findings.extend(_with_owners(analysis, entry, finding) for finding in findings)
            return None, None
        if hasattr(options, "resolve"):
            options = options.resolve(adapter=adapter)
        dumped: dict[str, Any] = options.model_dump(mode="json")
        refuse_passwords(dumped, of=what or component.id)  # a default may come out of the environment
        return options, dumped
    except TunekitError as error:
        analysis.add_error(step, error)
    except Exception as error:  # noqa: BLE001  (code of a plugin)
        analysis.add(
            "error",
            step,
            "option-value",
            f"The options of {what or component.id} cannot be used: {error}.",
            f"see the options of {component.id}",
            error=repr(error),
        )
    return None, None


def _with_owners(analysis: Analysis, entry: Entry, finding: Finding) -> Finding:
    """Where an option is unknown, but one of other components of the stage: name them."""
    if finding.code != "unknown-option" or not entry.component.stage:
        return finding
    name, owners, alike = finding.details["option"], [], []
    accepted = set(getattr(entry.spec, "data", ()))
    for other in analysis.session.registry.components(entry.component.kind):
        if other.component.stage != entry.component.stage or other.component == entry.component:
            continue
        # A plugin that cannot be loaded is told about where it is used.
        with contextlib.suppress(TunekitError):
            model = analysis.session.options_model(other.component)
            if model is not None and name in model.model_fields:
                owners.append(other.component.name)
                if accepted & set(getattr(other.spec, "data", ())):
                    alike.append(other.component.name)
    # What learns from other data is no way out, and may mean something else by the name.
    owners = alike or owners
    if not owners:
        return finding
    shown = owners if len(owners) <= 4 else [*owners[:3], f"{len(owners) - 3} others"]
    listed = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    fix = f"leave {name} out"
    return replace(
        finding,
        message=f"{entry.component.name} has no option {name!r}; {listed} {'has' if len(owners) == 1 else 'have'} it.",
        fix=f"take {' or '.join(owners)}, or {fix}" if shown is owners else fix,
        details={**finding.details, "suggestions": [], "components": owners},
    )
