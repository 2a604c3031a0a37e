"""Benchmarks and the scoring engine.

``run_benchmark(benchmark, rows, runner, rows_path=...)`` measures a model outside a pipeline;
``TransformersRunner(model, tokenizer)`` is the runner for a ``transformers`` model in memory.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunekit_evals.engine import TransformersRunner as TransformersRunner
    from tunekit_evals.runner import Answer as Answer
    from tunekit_evals.runner import Prompt as Prompt
    from tunekit_evals.runner import Runner as Runner
    from tunekit_evals.runner import run_benchmark as run_benchmark

__all__ = ["Answer", "Prompt", "Runner", "TransformersRunner", "run_benchmark"]

_WHERE = dict.fromkeys(__all__, "tunekit_evals.runner") | {"TransformersRunner": "tunekit_evals.engine"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
