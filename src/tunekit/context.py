"""What a component is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.cancel import CancelToken
from tunekit.errors import ArtifactError

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.data import Dataset
    from tunekit.plan import ComponentRef, ResolvedStep
    from tunekit.plugins.protocols import Adapter, Benchmark, Component, LoadedModel, Reward

__all__ = ["BenchmarkJob", "BoundReward", "StepContext"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob:
    """One benchmark of an evaluate step."""

    component: ComponentRef
    benchmark: Benchmark
    """The benchmark, ready to use."""
    source: Path | None
    """The user's folder for this benchmark, or None for the embedded sample."""
    source_label: str
    """For the score's ``source``: the path, the hub id, or ``sample``."""
    needs: str
    """``loglikelihood``, ``generation`` or ``perplexity``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What :meth:`Benchmark.rows` is given: the options of the step, with ``data`` and ``settings`` of this benchmark
    put in, and the benchmark's own options filled in."""
    runs_code: bool = False
    """Whether it runs code that the model wrote."""


@dataclass(frozen=True, kw_only=True)
class BoundReward:
    """A reward of a step, ready to be called."""

    name: str
    """What it is called in logs and reports: the name of the step or component, or that of the function."""
    reward: Reward
    weight: float = 1.0
    """What its scores are multiplied by before they are added up."""
    label: str = ""
    """Component and version, for people; for a function, where it is from."""


@dataclass(kw_only=True)
class StepContext:
    """Everything a component may use. One per step and run.

    A component writes below :attr:`dir` only. The core publishes the folder atomically when :meth:`Component.run`
    returns, so half-written results are never picked up; after an interruption the same folder is handed in again.
    """

    run_id: str
    step: ResolvedStep
    """The step, with every option filled in."""
    options: Any
    """The validated options: an instance of the component's options model, or None."""
    seed: int
    """Seed of this step."""
    dir: Path
    """Folder of the step; ``checkpoints/`` in it survives an interruption."""
    cancel: CancelToken
    input: Artifact | None
    """Artifact of the step this one starts from; None: the base model, or nothing."""
    adapter: Adapter | None = None
    """The adapter to train through, or None for full training."""
    data: Dataset | None = None
    """The step's training data, validated; None if the step reads none."""
    validation: Dataset | None = None
    """Held-out rows of the step (option ``validation``); none of them is in :attr:`data`."""
    further_data: Mapping[str, Dataset] = field(default_factory=dict)
    """What ``options.further_data()`` asked for, opened."""
    cache: Path | None = None
    """Folder for data derived from the step's inputs, such as token ids; shared by the steps and later runs of the
    work folder, and no part of any result. It may not be there yet: make it before writing. Whoever writes there names
    files by a fingerprint and renames them into place when complete; no other run uses the work folder meanwhile."""
    training_data: Sequence[Dataset] = ()
    """Data of the training steps that led to :attr:`input`, oldest first: for calibration and held-out checks."""
    benchmarks: Sequence[BenchmarkJob] = ()
    """For evaluate steps."""
    rewards: Sequence[BoundReward] = ()
    """What completions are scored with, in the order of the option ``reward``; started."""
    input_weights_hash: str = ""
    """Hash of the weights that :meth:`model` gives; a base model's fingerprint when it was never saved by a step."""
    input_path: Path | None = None
    """Folder with the input model, for tools that read from disk; None for a base model that has no plain folder."""
    _component: Callable[[], Component] = field(repr=False)
    _load: Callable[[], LoadedModel] = field(repr=False)
    _keep: Callable[[LoadedModel], None] = field(repr=False)
    _emit: Callable[..., None] = field(repr=False)
    _load_other: Callable[[str], LoadedModel] | None = field(default=None, repr=False)

    def component(self) -> Component:
        """The component that does the step's work. For plugins that wrap ``tunekit_run_step``.

        Raises:
            MissingDependencyError: if a package it needs is missing.
            PluginError: if it cannot be imported or is not a component.
        """
        return self._component()

    def model(self) -> LoadedModel:
        """The input model, in memory. It is read from disk at most once per process and shared between steps.

        A trainer may change it in place; it then hands the result on with :meth:`keep`.

        Raises:
            ArtifactError: if it cannot be read, or if its files are not the ones the plan names.
        """
        return self._load()

    def load_model(self, ref: str) -> LoadedModel:
        """Another model than the input, such as a judge, by reference. It is read anew on every call, but for the
        rewards of a step: those that load one model share it, and must not change it.

        Args:
            ref: as in ``Pipeline(model=...)``: a folder, a GGUF file, a hub id, a short name; or ``step:<name>``, the
                model of an earlier step.

        Raises:
            ArtifactError: if nothing knows the reference, or its files cannot be read.
        """
        if self._load_other is None:
            raise ArtifactError("No other model can be had here.", code="no-models", asked=ref)
        return self._load_other(ref)

    def keep(self, loaded: LoadedModel) -> None:
        """Hand the trained model to the next step, so that it need not be read from disk. Its weights must equal the
        ones written to the artifact."""
        self._keep(loaded)

    def notice(self, code: str, message: str) -> None:
        """Tell the user a fact that must be seen."""
        self._emit("notice", code=code, message=message)

    def progress(self, done: float, total: float | None, unit: str, label: str = "") -> None:
        """Say how far the work is."""
        self._emit("progress", done=done, total=total, unit=unit, label=label)

    def metrics(self, global_step: int, values: Mapping[str, float]) -> None:
        """Record numbers of one optimizer step: to ``metrics.jsonl``, the history, and the observers."""
        self._emit("metrics", global_step=global_step, values=dict(values))

    def checkpoint_saved(self, path: Path, global_step: int) -> None:
        """Say that a resumable checkpoint is complete."""
        self._emit("checkpoint", path=str(path), global_step=global_step)
