"""The context of a step as a run builds it, for tests that call a component by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.cancel import CancelToken
from tunekit.context import StepContext
from tunekit.plan import ComponentRef, ResolvedAdapter, ResolvedStep

if TYPE_CHECKING:
    from tunekit.plugins.protocols import LoadedModel

__all__ = ["BuiltContext", "StepEvents", "step_context"]


class StepEvents(list[tuple[str, dict[str, Any]]]):
    """What a step said, in order."""

    def __call__(self, kind: str, **values: Any) -> None:
        self.append((kind, values))

    def named(self, kind: str) -> list[dict[str, Any]]:
        """What was said with ``notice``, ``metrics``, ``progress`` or ``checkpoint``."""
        return [values for name, values in self if name == kind]

    def codes(self) -> list[str]:
        """Codes of the notices."""
        return [values["code"] for values in self.named("notice")]

    def values(self, name: str) -> list[float]:
        """A logged number, wherever it was logged."""
        return [values["values"][name] for values in self.named("metrics") if name in values["values"]]

    @property
    def losses(self) -> list[float]:
        """The logged losses."""
        return self.values("loss")


@dataclass(kw_only=True)
class BuiltContext(StepContext):
    """A context that was built by hand."""

    kept: list[LoadedModel] = field(default_factory=list)
    """The models that the component handed on."""


def step_context(
    folder: Path,
    options: Any,
    *,
    kind: str,
    name: str = "test",
    provider: str = "tests",
    loaded: LoadedModel | None = None,
    adapter: Any = None,
    label: str = "lora",
    seed: int = 7,
    events: Callable[..., None] | None = None,
    cancel: CancelToken | None = None,
    **more: Any,
) -> BuiltContext:
    """The context of the first step of a run.

    Args:
        folder: of the step; made if need be.
        options: the validated options, resolved.
        kind: ``sft``, ``align`` ...; the step has the same name.
        name: of the component.
        provider: distribution that it comes from.
        loaded: the input model; None: it is not asked for.
        adapter: what is trained; None: all weights.
        label: what the adapter is called.
        seed: of the step.
        events: is told what the step says; None: a :class:`StepEvents`.
        cancel: None: one that nobody uses.
        more: other fields of the context.
    """
    bound = None
    if adapter is not None:
        part = ComponentRef(kind="adapter", name="lora", provider="tunekit-peft", version="0", target="x:y")
        bound = ResolvedAdapter(component=part, options={}, label=label)
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[LoadedModel] = []
    return BuiltContext(
        run_id="test",
        step=ResolvedStep(
            index=1,
            kind=kind,
            name=kind,
            component=ComponentRef(kind="trainer", name=name, provider=provider, version="0", target="x:y", stage=kind),
            options={},
            input=None,
            adapter=bound,
            trains=label if bound else "full",
            data="list",
        ),
        options=options,
        seed=seed,
        dir=folder,
        cancel=cancel or CancelToken(),
        input=None,
        adapter=adapter,
        kept=kept,
        _component=_nothing,
        _load=lambda: loaded,  # type: ignore[arg-type,return-value]
        _keep=kept.append,
        _emit=StepEvents() if events is None else events,
        **more,
    )


def _nothing() -> Any:
    """No component: the test has it."""
