"""Hand-built steps of PPO on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunekit.cancel import CancelToken
from tunekit.context import BoundReward, StepContext
from tunekit.data import load_dataset
from tunekit.plan import ComponentRef, ResolvedAdapter, ResolvedStep
from tunekit.plugins import LoadedModel
from tunekit.testing import tiny_model, tiny_tokenizer
from tunekit_ppo.options import PpoOptions

__all__ = ["LETTERS", "PROMPTS", "Events", "context", "loaded", "share"]

PROMPTS = [{"prompt": text} for text in ("ab", "a longer prompt", "cd?", "e", "what?", "go on", "more", "and so on")]
LETTERS = "abcdefgh"


class Events(list[tuple[str, dict[str, Any]]]):
    """What a step said, in order."""

    def __call__(self, kind: str, **values: Any) -> None:
        self.append((kind, values))

    def named(self, kind: str) -> list[dict[str, Any]]:
        return [values for name, values in self if name == kind]

    def codes(self) -> list[str]:
        return [values["code"] for values in self.named("notice")]

    def values(self, name: str) -> list[float]:
        """A logged number, wherever it was logged."""
        return [values["values"][name] for values in self.named("metrics") if name in values["values"]]


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
) -> StepContext:
    """A context as the core builds it. ``reward``: a function, or a list of :class:`BoundReward`."""
    rewards = reward if isinstance(reward, list) else [BoundReward(name="score", reward=reward)]
    start = loaded() if start is None else start
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[LoadedModel] = []
    bound = None
    if adapter is not None:
        part = ComponentRef(kind="adapter", name="lora", provider="tunekit-peft", version="0", target="x:y")
        bound = ResolvedAdapter(component=part, options={}, label="lora")
    component = ComponentRef(
        kind="trainer", name="ppo", provider="tunekit-ppo", version="0", target="x:y", stage="align"
    )
    ctx = StepContext(
        run_id="test",
        step=ResolvedStep(
            index=1,
            kind="align",
            name="align",
            component=component,
            options={},
            input=None,
            adapter=bound,
            trains="lora" if adapter else "full",
            data="list",
        ),
        options=PpoOptions(**options).resolve(adapter="lora" if adapter else None),
        seed=seed,
        dir=folder,
        cancel=cancel or CancelToken(),
        input=None,
        adapter=adapter,
        data=load_dataset(PROMPTS if rows is None else rows, accepts=("prompt",)),
        rewards=rewards,
        _component=lambda: None,
        _load=lambda: start,
        _keep=kept.append,
        _emit=Events() if events is None else events,
    )
    ctx.kept = kept  # type: ignore[attr-defined]
    return ctx
