"""What tunekit-example offers: records only, nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit.plugins import BenchmarkSpec, DataFormatSpec, QuantizerSpec, RewardSpec, TrackerSpec, TrainerSpec, hookimpl

if TYPE_CHECKING:
    from tunekit.plugins import ModelSource

api_version = 1

_REQUIRES = ("torch>=2.8", "transformers>=5.15,<6")


@hookimpl
def tunekit_trainers() -> list[TrainerSpec]:
    """Used by ``sft(method="plain")``."""
    return [
        TrainerSpec(
            name="plain",
            stage="sft",
            target="tunekit_example.trainer:PlainTrainer",
            options="tunekit_example.options:PlainOptions",
            summary="Fine-tuning with the plain trainer of transformers",
            data=("prompt_completion",),
            requires=(*_REQUIRES, "accelerate>=1.13,<2"),
        )
    ]


@hookimpl
def tunekit_quantizers() -> list[QuantizerSpec]:
    """Used by ``quantize("int8", method="rtn")``."""
    return [
        QuantizerSpec(
            name="rtn",
            target="tunekit_example.quantizer:RtnQuantizer",
            options="tunekit_example.options:RtnOptions",
            summary="Linear weights rounded to the nearest of 255 steps per row",
            schemes=("int8",),
            requires=(*_REQUIRES, "safetensors>=0.5"),
        )
    ]


@hookimpl
def tunekit_benchmarks() -> list[BenchmarkSpec]:
    """Used by ``evaluate(["capitals"])``."""
    return [
        BenchmarkSpec(
            name="capitals",
            target="tunekit_example.benchmark:CapitalsBenchmark",
            summary="Twelve questions on capitals, four choices each, by log-likelihood",
            needs="loglikelihood",
            sample=True,
        )
    ]


@hookimpl
def tunekit_rewards() -> list[RewardSpec]:
    """Used by ``align(method="grpo", reward="words")``."""
    return [
        RewardSpec(
            name="words",
            target="tunekit_example.reward:WordsReward",
            options="tunekit_example.options:WordsOptions",
            summary="Answers of about so many words",
        )
    ]


@hookimpl
def tunekit_formats() -> list[DataFormatSpec]:
    """Used by ``sft(data=..., format="chatlog")``, and found by its column."""
    return [
        DataFormatSpec(
            name="chatlog",
            target="tunekit_example.format:chatlog_row",
            summary="Chat logs, one text per row with a line for each message",
            schema="conversation",
            columns=("chat",),
            optional=("system",),
        )
    ]


@hookimpl
def tunekit_trackers() -> list[TrackerSpec]:
    """Used by ``track("csvlog")``."""
    return [
        TrackerSpec(
            name="csvlog",
            target="tunekit_example.tracker:CsvTracker",
            options="tunekit_example.options:CsvOptions",
            summary="Every logged number, one line each, in a CSV file",
        )
    ]


# Before the plugin for plain folders, which would take a quantized folder for one of them.
@hookimpl(tryfirst=True)
def tunekit_resolve_model(ref: str) -> ModelSource | None:
    """Folders that the quantizer wrote."""
    from tunekit_example.source import resolve

    return resolve(ref)
