"""The plugin API: the only import a plugin needs.

``from tunekit.plugins import hookimpl, TrainerSpec`` is cheap; option bases (pydantic) and protocols load on first use.
Helpers for trainers built on ``transformers`` are in :mod:`tunekit.plugins.hf`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit._lazy import attach

if TYPE_CHECKING:
    from tunekit._registry import Entry as Entry
    from tunekit._registry import PluginRecord as PluginRecord
    from tunekit.artifacts import Artifact as Artifact
    from tunekit.artifacts import ModelCard as ModelCard
    from tunekit.artifacts import Score as Score
    from tunekit.artifacts import ScoredRow as ScoredRow
    from tunekit.cancel import CancelToken as CancelToken
    from tunekit.context import BenchmarkJob as BenchmarkJob
    from tunekit.context import BoundReward as BoundReward
    from tunekit.context import StepContext as StepContext
    from tunekit.data.rows import RowProblem as RowProblem
    from tunekit.plan import ComponentRef as ComponentRef
    from tunekit.plan import Plan as Plan
    from tunekit.plan import ResolvedAdapter as ResolvedAdapter
    from tunekit.plan import ResolvedStep as ResolvedStep
    from tunekit.plugins.decorators import adapter as adapter
    from tunekit.plugins.decorators import benchmark as benchmark
    from tunekit.plugins.decorators import data_format as data_format
    from tunekit.plugins.decorators import dataset as dataset
    from tunekit.plugins.decorators import exporter as exporter
    from tunekit.plugins.decorators import model as model
    from tunekit.plugins.decorators import quantizer as quantizer
    from tunekit.plugins.decorators import reward as reward
    from tunekit.plugins.decorators import step as step
    from tunekit.plugins.decorators import tracker as tracker
    from tunekit.plugins.decorators import trainer as trainer
    from tunekit.plugins.marker import hookimpl as hookimpl
    from tunekit.plugins.options import DataOptions as DataOptions
    from tunekit.plugins.options import DataRequest as DataRequest
    from tunekit.plugins.options import Options as Options
    from tunekit.plugins.options import SampleOptions as SampleOptions
    from tunekit.plugins.options import SupervisedOptions as SupervisedOptions
    from tunekit.plugins.options import TrainOptions as TrainOptions
    from tunekit.plugins.options import ValidatedOptions as ValidatedOptions
    from tunekit.plugins.protocols import Adapter as Adapter
    from tunekit.plugins.protocols import Benchmark as Benchmark
    from tunekit.plugins.protocols import BenchmarkContext as BenchmarkContext
    from tunekit.plugins.protocols import ChoiceRequest as ChoiceRequest
    from tunekit.plugins.protocols import Component as Component
    from tunekit.plugins.protocols import Finding as Finding
    from tunekit.plugins.protocols import GenerationRequest as GenerationRequest
    from tunekit.plugins.protocols import LoadedModel as LoadedModel
    from tunekit.plugins.protocols import ModelSource as ModelSource
    from tunekit.plugins.protocols import PerplexityRequest as PerplexityRequest
    from tunekit.plugins.protocols import Request as Request
    from tunekit.plugins.protocols import Response as Response
    from tunekit.plugins.protocols import Reward as Reward
    from tunekit.plugins.protocols import Setup as Setup
    from tunekit.plugins.protocols import TokenizerSource as TokenizerSource
    from tunekit.plugins.protocols import Tracker as Tracker
    from tunekit.plugins.specs import API_VERSION as API_VERSION
    from tunekit.plugins.specs import AdapterSpec as AdapterSpec
    from tunekit.plugins.specs import BenchmarkSpec as BenchmarkSpec
    from tunekit.plugins.specs import DataFormatSpec as DataFormatSpec
    from tunekit.plugins.specs import DatasetSpec as DatasetSpec
    from tunekit.plugins.specs import ExporterSpec as ExporterSpec
    from tunekit.plugins.specs import ModelSpec as ModelSpec
    from tunekit.plugins.specs import QuantizerSpec as QuantizerSpec
    from tunekit.plugins.specs import RewardSpec as RewardSpec
    from tunekit.plugins.specs import Spec as Spec
    from tunekit.plugins.specs import StepSpec as StepSpec
    from tunekit.plugins.specs import TrackerSpec as TrackerSpec
    from tunekit.plugins.specs import TrainerSpec as TrainerSpec
    from tunekit.plugins.views import HARMFUL as HARMFUL
    from tunekit.plugins.views import LabelTotals as LabelTotals
    from tunekit.plugins.views import ModelFacts as ModelFacts
    from tunekit.plugins.views import PreviewContext as PreviewContext
    from tunekit.plugins.views import PreviewRow as PreviewRow
    from tunekit.plugins.views import TokenView as TokenView

_WHERE = {
    "tunekit._registry": ("Entry", "PluginRecord"),
    "tunekit.artifacts": ("Artifact", "ModelCard", "Score", "ScoredRow"),
    "tunekit.cancel": ("CancelToken",),
    "tunekit.context": ("BenchmarkJob", "BoundReward", "StepContext"),
    "tunekit.data.rows": ("RowProblem",),
    "tunekit.plan": ("ComponentRef", "Plan", "ResolvedAdapter", "ResolvedStep"),
    "tunekit.plugins.decorators": (
        "adapter",
        "benchmark",
        "data_format",
        "dataset",
        "exporter",
        "model",
        "quantizer",
        "reward",
        "step",
        "tracker",
        "trainer",
    ),
    "tunekit.plugins.marker": ("hookimpl",),
    "tunekit.plugins.options": (
        "DataOptions",
        "DataRequest",
        "Options",
        "SampleOptions",
        "SupervisedOptions",
        "TrainOptions",
        "ValidatedOptions",
    ),
    "tunekit.plugins.protocols": (
        "Adapter",
        "Benchmark",
        "BenchmarkContext",
        "ChoiceRequest",
        "Component",
        "Finding",
        "GenerationRequest",
        "LoadedModel",
        "ModelSource",
        "PerplexityRequest",
        "Request",
        "Response",
        "Reward",
        "Setup",
        "TokenizerSource",
        "Tracker",
    ),
    "tunekit.plugins.specs": (
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
    ),
    "tunekit.plugins.views": ("HARMFUL", "LabelTotals", "ModelFacts", "PreviewContext", "PreviewRow", "TokenView"),
}

__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
