"""Hand-built steps of PPO on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunekit.cancel import CancelToken
from tunekit.context import BoundReward
from tunekit.data import load_dataset
from tunekit.plugins import LoadedModel
from tunekit.testing import tiny_model, tiny_tokenizer
from tunekit.testing.contexts import BuiltContext, StepEvents, step_context
from tunekit_ppo.options import PpoOptions

__all__ = ["LETTERS", "PROMPTS", "Events", "context", "loaded", "share"]

PROMPTS = [{"prompt": text} for text in ("ab", "a longer prompt", "cd?", "e", "what?", "go on", "more", "and so on")]
LETTERS = "abcdefgh"


Events = StepEvents


def loaded(**arguments: Any) -> LoadedModel:
    """A tiny model and a tokenizer without a chat template."""
    return LoadedModel(model=tiny_model(**arguments), tokenizer=tiny_tokenizer(None))


def share(letter: str) -> Callable[..., list[float]]:
    """A reward: the share of a completion's tokens that are this byte."""

    def score(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        lengths = [len(ids) for ids in columns["completion_ids"]]
        return [text.count(letter) / size for text, size in zip(completions, lengths, strict=True)]

    return score


def context(
    folder: Path,
    reward: Any,
    *,
    start: LoadedModel | None = None,
    rows: Any = None,
    adapter: Any = None,
    seed: int = 7,
    events: Callable[..., None] | None = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> BuiltContext:
    """A context as the core builds it. ``reward``: a function, or a list of :class:`BoundReward`."""
    return step_context(
        folder,
        PpoOptions(**options).resolve(adapter="lora" if adapter else None),
        kind="align",
        name="ppo",
        provider="tunekit-ppo",
        loaded=loaded() if start is None else start,
        adapter=adapter,
        seed=seed,
        events=events,
        cancel=cancel,
        data=load_dataset(PROMPTS if rows is None else rows, accepts=("prompt",)),
        rewards=reward if isinstance(reward, list) else [BoundReward(name="score", reward=reward)],
    )
