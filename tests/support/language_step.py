"""A step of a language-model trainer, run without a pipeline, that remembers what it was told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunekit.artifacts import Artifact
from tunekit.data import load_dataset
from tunekit.plugins import Component, LoadedModel
from tunekit.testing.contexts import step_context

TEXTS = [
    f"{name} went to the {place}. {name} saw a {thing} there and said: what a nice {thing}! "
    f"Then {name} took the {thing} home and showed it to everyone in the {place}."
    for name in ("Lily", "Tom", "Sue", "Ben")
    for place in ("park", "shop", "lake")
    for thing in ("ball", "dog", "boat", "kite")
]


def data(texts: Sequence[str]) -> Any:
    return load_dataset([{"text": text} for text in texts], accepts=("text",))


class Step:
    """Runs a component on texts and keeps its events.

    Args:
        folder: of the step.
        options: not resolved yet.
        model: input model; None: pretraining.
        texts: to train on.
        validation: held-out texts.
        general: texts of another kind.
        cancel_after: optimizer step after which the run is cancelled.
    """

    def __init__(
        self,
        folder: Path,
        options: Any,
        model: LoadedModel | None = None,
        *,
        texts: Sequence[str] = TEXTS,
        validation: Sequence[str] | None = None,
        general: Sequence[str] | None = None,
        cancel_after: int | None = None,
    ) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.cancel_after = cancel_after
        self.ctx = step_context(
            folder,
            options.resolve(adapter=None),
            kind="pretrain" if model is None else "post_pretrain",
            name="causal",
            provider="tunekit-transformers",
            loaded=model,
            seed=5,
            events=self.emit,
            data=data(texts),
            validation=None if validation is None else data(validation),
            further_data={} if general is None else {"general_data": data(general)},
        )
        self.kept = self.ctx.kept

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))
        if kind == "metrics" and fields["global_step"] == self.cancel_after:
            self.ctx.cancel.cancel("a test")

    def run(self, component: Component) -> Artifact:
        return component.run(self.ctx)

    def logged(self, name: str) -> dict[int, float]:
        """Values of one logged number by optimizer step."""
        return {
            f["global_step"]: f["values"][name] for kind, f in self.events if kind == "metrics" and name in f["values"]
        }

    def losses(self) -> dict[int, float]:
        return self.logged("loss")

    def notices(self) -> dict[str, str]:
        return {f["code"]: f["message"] for kind, f in self.events if kind == "notice"}
