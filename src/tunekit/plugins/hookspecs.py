"""Every hook of tunekit, on one page.

A plugin is a module (or object) named by an entry point of the group ``tunekit``::

    # pyproject.toml
    [project.entry-points.tunekit]
    acme-rl = "acme_rl.plugin"

    # acme_rl/plugin.py
    from tunekit.plugins import TrainerSpec, hookimpl

    api_version = 1

    @hookimpl
    def tunekit_trainers():
        return [TrainerSpec(name="grpo2", stage="align", target="acme_rl.trainer:Grpo2",
                            options="acme_rl.options:Grpo2Options", data=("preference",))]

Keep that module tiny: it is imported whenever plugins are listed. Give no argument of a hook implementation a default
value: pluggy releases differ in what they make of it, and tunekit refuses it.

The registration hooks are called once per session, on first use. Each returns an iterable of specs. Two plugins may
offer the same short name: nothing breaks until someone uses it, and then the error lists the spellings
``dist/name`` that tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy  # noqa: TID253  (imported only through tunekit._manager, on first use)

from tunekit.plugins.specs import (
    AdapterSpec,
    BenchmarkSpec,
    DataFormatSpec,
    DatasetSpec,
    ExporterSpec,
    ModelSpec,
    QuantizerSpec,
    RewardSpec,
    StepSpec,
    TrackerSpec,
    TrainerSpec,
)

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.context import StepContext
    from tunekit.data import Dataset
    from tunekit.events import Event
    from tunekit.plan import Plan, ResolvedStep
    from tunekit.plugins.protocols import Finding, ModelSource

PROJECT = "tunekit"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def tunekit_trainers() -> Iterable[TrainerSpec]:
    """Trainers for the stages ``pretrain``, ``post_pretrain``, ``sft``, ``reward`` and ``align``.

    Used by ``align(method="grpo2")``; ``name`` is the method.
    """
    return ()


@hookspec
def tunekit_adapters() -> Iterable[AdapterSpec]:
    """Adapters, used by ``lora(...)``, ``qlora(...)`` and ``adapter(name, ...)``."""
    return ()


@hookspec
def tunekit_quantizers() -> Iterable[QuantizerSpec]:
    """Quantizers, used by ``quantize("int4", method=name)``."""
    return ()


@hookspec
def tunekit_benchmarks() -> Iterable[BenchmarkSpec]:
    """Benchmarks, used by ``evaluate([name, ...])``."""
    return ()


@hookspec
def tunekit_rewards() -> Iterable[RewardSpec]:
    """Rewards, used by ``align(method="grpo", reward=name)``."""
    return ()


@hookspec
def tunekit_exporters() -> Iterable[ExporterSpec]:
    """Exporters, used by ``export(name, ...)``."""
    return ()


@hookspec
def tunekit_trackers() -> Iterable[TrackerSpec]:
    """Trackers, used by ``track(name, ...)``."""
    return ()


@hookspec
def tunekit_models() -> Iterable[ModelSpec]:
    """Models known by a short name, used by ``Pipeline(model=name)``."""
    return ()


@hookspec
def tunekit_datasets() -> Iterable[DatasetSpec]:
    """Data sets known by a short name, used by ``sft(data=name)``."""
    return ()


@hookspec
def tunekit_formats() -> Iterable[DataFormatSpec]:
    """Data formats, used by ``sft(data=..., format=name)``, and for data whose columns fit no format of tunekit's own.

    Installing a plugin changes nothing about data that could be read before. Where formats of two plugins fit, the
    user is asked to name one.
    """
    return ()


@hookspec
def tunekit_steps() -> Iterable[StepSpec]:
    """Step kinds of their own, used by ``step(name, ...)``."""
    return ()


@hookspec(firstresult=True)
def tunekit_resolve_model(ref: str) -> ModelSource | None:
    """The source behind a model reference (path, GGUF file, hub id), or None if this plugin does not know it.

    Called while checking a plan: read no weights, import no torch, touch no network. The first plugin that returns
    something wins.
    """
    return None


@hookspec(firstresult=True)
def tunekit_resolve_dataset(ref: Any) -> Dataset | None:
    """The data set behind a reference (path, hub id, an object in memory), or None.

    The first plugin that returns something wins; tunekit itself comes last and knows local files, lists and the
    ``datasets`` and pandas types. In place of a data set it may be an object that gives one of the shape that a step
    takes: ``as_dataset(accepts, limit=None, on_bad_row="error")``. Where a ``reward`` or ``align`` step names no
    method, ``best_method(stage)``, if the object has it, gives one and the reason, or None; it raises ``DataError`` if
    no method learns from the data.
    """
    return None


@hookspec(firstresult=True)
def tunekit_resolve_benchmark(ref: str) -> BenchmarkSpec | None:
    """The benchmark behind a name that no plugin registered, such as a file of questions, or None.

    Called while checking a plan, with the name as the user wrote it. Import nothing heavy, touch no network. The first
    plugin that returns something wins. ``arguments`` of the spec tell the target which benchmark it is to be; the score
    has the name that the user wrote.
    """
    return None


@hookspec
def tunekit_check_plan(plan: Plan) -> Iterable[Finding]:
    """Further findings about a plan. Pure and fast: no disk, no network, no torch."""
    return ()


@hookspec(firstresult=True)
def tunekit_run_step(step: ResolvedStep, ctx: StepContext) -> Artifact | None:
    """Run one step. tunekit's own implementation comes last and calls the step's component.

    Wrap it (``@hookimpl(wrapper=True)``) for tracing; return an artifact to take over, such as running the step on
    another machine. The first plugin that returns something wins.
    """
    return None


@hookspec
def tunekit_event(event: Event) -> None:
    """Take one event of a run. An exception is isolated and reported once."""
