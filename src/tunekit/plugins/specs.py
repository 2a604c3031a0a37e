"""The records a plugin returns from its registration hooks.

A spec is cheap: it names things by import string (``"pkg.module:Class"``), so that listing plugins imports nothing
heavy. Fields may be added with defaults; none changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = [
    "API_VERSION",
    "AdapterSpec",
    "BenchmarkSpec",
    "DataFormatSpec",
    "DatasetSpec",
    "ExporterSpec",
    "ModelSpec",
    "QuantizerSpec",
    "RewardSpec",
    "Spec",
    "StepSpec",
    "TrackerSpec",
    "TrainerSpec",
]

API_VERSION = 1
"""Version of the plugin API. A plugin module states the one it was written for as ``api_version = 1``."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Fields of every spec."""

    kind: ClassVar[str] = ""

    name: str
    """Short name that users write: lower case letters, digits, ``-``, ``_`` and ``.``."""
    target: str
    """Import string of the component, ``"pkg.module:attribute"``. Imported only when a step runs."""
    summary: str = ""
    """One line for people."""
    options: str | None = None
    """Import string of a pydantic model of the options, which must not import torch. None: no options."""
    requires: tuple[str, ...] = ()
    """Requirements to check before a run, such as ``"trl>=1.14,!=1.15.*"``."""
    install: str = ""
    """Exact install line for the requirements; default: ``pip install`` of the missing ones."""


@dataclass(frozen=True, kw_only=True)
class TrainerSpec(Spec):
    """Updates weights. ``target`` is a class with ``run(ctx: StepContext) -> Artifact``."""

    kind: ClassVar[str] = "trainer"

    stage: str
    """``pretrain``, ``post_pretrain``, ``sft``, ``reward`` or ``align``."""
    data: tuple[str, ...] = ()
    """Row shapes it accepts, the preferred first: ``text``, ``prompt_completion``, ``conversation`` ..."""
    adapters: bool = True
    """Whether it can train through an adapter."""
    preview: str = ""
    """Import string of a callable ``(ctx: PreviewContext) -> Iterator[PreviewRow]`` that gives the examples as the
    trainer would learn them, without loading weights. Empty: ``Pipeline.preview`` says that the trainer has none."""
    rewards: str = ""
    """Whether the trainer scores what a model writes: ``required``, ``optional``, or empty: it does not. Such a trainer
    takes the option ``reward`` and finds what it names in ``ctx.rewards``; without the option, that is the model of
    the nearest ``reward`` step before it."""
    scored_by: str = ""
    """For trainers of the stage ``reward``: name of the reward, of the same plugin, that scores with their model. It
    has an option ``model``."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec(Spec):
    """Trains a small part in place of all weights. ``target(options)`` is an ``Adapter``."""

    kind: ClassVar[str] = "adapter"

    label: str = "{name}"
    """How ``explain`` shows it; a format string over the name and the options, such as ``"{name} r={r}"``."""


@dataclass(frozen=True, kw_only=True)
class QuantizerSpec(Spec):
    """Makes a smaller model. ``target`` is a class with ``run(ctx: StepContext) -> Artifact``."""

    kind: ClassVar[str] = "quantizer"

    schemes: tuple[str, ...] = ()
    """Widths it can write, such as ``("int4", "int8")``."""
    calibrated: bool = False
    """Whether it needs calibration data."""
    trainable_with: tuple[str, ...] = ()
    """Adapters that can be trained on top of its result; empty: none."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec(Spec):
    """Measures a model. ``target`` is a class that takes no arguments (but ``arguments``) and is a ``Benchmark``.

    A spec with ``members`` is a set of benchmarks instead, such as ``reasoning``: ``evaluate`` replaces its name by
    theirs; its ``target`` is empty.
    """

    kind: ClassVar[str] = "benchmark"

    needs: str = "loglikelihood"
    """What it asks of the model: ``loglikelihood``, ``generation`` or ``perplexity``."""
    folder: str = ""
    """Name of its sub-folder in the user's data folder; default: the benchmark's name."""
    folders: tuple[str, ...] = ()
    """Other places of its data in the user's data folder, after ``folder``: sub-folders, or files, such as
    ``llm-foundry/piqa.jsonl``."""
    data: str = ""
    """Path of its data, where they do not lie in the user's data folder, such as a file of questions."""
    brings_data: bool = False
    """Whether it reads none of the user's data folder, such as a benchmark of another tool, which finds its own."""
    members: tuple[str, ...] = ()
    """Names of the benchmarks of a set."""
    provenance: str = ""
    """Where its questions, its prompt and its scoring come from: paper, repository, licence of the data."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for ``target``, as JSON types."""
    runs_code: bool = False
    """Whether it runs code that the model wrote."""

    hub: str = ""
    """Hub id of its published data, or empty."""
    sample: bool = False
    """Whether it carries an embedded sample for bare use, labelled as not comparable."""

    @property
    def places(self) -> tuple[str, ...]:
        """Where its data may lie in the user's data folder, the usual place first."""
        return (self.folder or self.name, *self.folders)


@dataclass(frozen=True, kw_only=True)
class ExporterSpec(Spec):
    """Writes a model in another format. ``target`` is a class with ``run(ctx: StepContext) -> Artifact``."""

    kind: ClassVar[str] = "exporter"


@dataclass(frozen=True, kw_only=True)
class RewardSpec(Spec):
    """Scores completions. ``target(options)`` (``target()`` without options) is a ``Reward``; a function
    ``(prompts, completions, **columns)`` is one itself.

    Used as ``align(method="grpo", reward="exact-match")``, or with a weight and options:
    ``reward=[{"name": "exact-match", "weight": 1.0, "answer": "solution"}]``.
    """

    kind: ClassVar[str] = "reward"

    columns: tuple[str, ...] = ()
    """Columns of the prompts' rows that it needs, such as ``answer``. An option of the same name, if it has one, says
    what the column is called in the data."""
    runs_code: bool = False
    """Whether it runs code that the model wrote."""


@dataclass(frozen=True, kw_only=True)
class TrackerSpec(Spec):
    """Sends events elsewhere. ``target`` is a class that takes the options and has ``on_event`` and ``close``."""

    kind: ClassVar[str] = "tracker"


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """A model known by a short name. ``target`` is a callable ``() -> ModelSource``."""

    kind: ClassVar[str] = "model"


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """A data set known by a short name. ``target`` is a callable ``() -> Iterable[row]`` of canonical rows."""

    kind: ClassVar[str] = "dataset"

    schema: str
    """Canonical row shape: ``text``, ``prompt_completion``, ``conversation``, ``preference`` ..."""
    license: str = ""
    """Licence of the data, for people."""


@dataclass(frozen=True, kw_only=True)
class DataFormatSpec(Spec):
    """A way to write rows that tunekit does not know. ``target`` is a callable ``(row) -> row``: a row as it stands in
    the file, to a row of ``schema``, or to a list of any number of them. It raises ``RowProblem`` for a row that cannot
    be used.

    tunekit uses the format when it is asked for (``sft(data=..., format=name)``), and by itself only for data whose
    columns fit no format of its own. A format takes no options.
    """

    kind: ClassVar[str] = "format"

    schema: str
    """Canonical row shape that its rows become: ``text``, ``prompt_completion``, ``conversation``, ``preference``,
    ``feedback``, ``ranked``, ``classification``, ``token_classification`` or ``regression``."""
    columns: tuple[str, ...]
    """Columns that every row has; data without one of them are not in this format."""
    optional: tuple[str, ...] = ()
    """Columns that are used when they are there."""
    without: tuple[str, ...] = ()
    """Columns that mean the data say more than this format takes from them: no detection then."""


@dataclass(frozen=True, kw_only=True)
class StepSpec(Spec):
    """A step kind of its own, used as ``Pipeline().step(name, ...)``. ``target`` has ``run(ctx) -> Artifact``."""

    kind: ClassVar[str] = "step"

    makes: str = "model"
    """``model`` or ``report``."""
    data: tuple[str, ...] = field(default=())
    """Row shapes it accepts; empty: it reads no training data."""
    adapters: bool = False
    """Whether the pipeline's adapter setting applies."""
    verb: str = ""
    """Method that pipelines offer for it: ``verb="distill"`` makes ``Pipeline().distill(...)`` mean
    ``Pipeline().step(name, ...)``. A lower-case identifier that no pipeline has yet. Empty: none."""
    preview: str = ""
    """Import string of a callable ``(ctx: PreviewContext) -> Iterator[PreviewRow]`` that shows what the step asks a
    model, without loading weights. Empty: ``Pipeline.preview`` says that the step has none."""
