"""Options of the evaluate step. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from tunekit.plugins import Options

__all__ = ["EvaluateOptions"]


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class EvaluateOptions(Options):
    """Which benchmarks, on which rows, asked how."""

    benchmarks: _Names = ["mmlu", "gsm8k"]
    """Names of benchmarks."""
    data: str | dict[str, str] | None = None
    """Folder with one sub-folder per benchmark in its publisher's own file format; ``"hub"`` loads the published data
    through the ``datasets`` library. Or a mapping from benchmark to its own folder or ``"hub"``. None: the embedded
    sample, whose scores compare with nothing. Nothing is downloaded unless ``"hub"`` is said."""
    limit: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "rows"})
    """Rows per benchmark. Over several subjects they are taken evenly, from the start of each subject; within a subject
    they are the first rows in file order."""
    subjects: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)] | None = None
    """Only these subjects, for benchmarks that have subjects, such as ``["anatomy"]``. None: all in the data."""
    num_fewshot: int | None = Field(default=None, ge=0, json_schema_extra={"unit": "examples"})
    """Worked examples before each question. None: the benchmark's own number (mmlu 5, gsm8k 8)."""
    chat_template: bool = False
    """Ask through the tokenizer's chat template, the examples and the question as one user message. It changes scores;
    the setting is recorded with each score."""
    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "sequences"})
    """Sequences per forward pass. It changes speed and memory, not scores."""
    max_new_tokens: int = Field(default=400, ge=1, json_schema_extra={"unit": "tokens"})
    """Longest answer in tokens, for benchmarks that generate; answers that reach it are counted and reported."""

    @field_validator("benchmarks", "subjects")
    @classmethod
    def _once(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"a name stands twice: {names}")
        return names
