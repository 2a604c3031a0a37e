"""What the targets of specs look like. Structural types: a plugin subclasses nothing.

Names from the field are used throughout: ``model`` is a ``torch.nn.Module``, ``tokenizer`` a
``transformers.PreTrainedTokenizerBase``. They are typed ``Any`` here, so that no heavy library is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tunekit.artifacts import Artifact, ScoredRow
from tunekit.events import Event

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.plugins.views import ModelFacts

__all__ = [
    "Adapter",
    "Benchmark",
    "Component",
    "Finding",
    "GenerationRequest",
    "ChoiceRequest",
    "LoadedModel",
    "ModelSource",
    "Request",
    "Response",
    "TokenizerSource",
    "Tracker",
]


@dataclass(kw_only=True)
class LoadedModel:
    """A model in memory, with its tokenizer."""

    model: Any
    """``torch.nn.Module`` that generates and scores, on its device, in evaluation mode."""
    tokenizer: Any
    """Its tokenizer."""
    path: Path | None = None
    """Folder it was read from or saved to."""
    weights_hash: str = ""
    """Hash of the weight files it equals."""


@runtime_checkable
class Component(Protocol):
    """A trainer, quantizer, exporter or step."""

    def run(self, ctx: StepContext) -> Artifact:
        """Do the work in ``ctx.dir`` and say what is there.

        Look at ``ctx.cancel`` between units of work. Raise ``StepError`` or ``DataError`` for what the user can mend.
        """
        ...


@runtime_checkable
class Adapter(Protocol):
    """Trains a small part of a model. Built as ``Target(options)`` with the validated options."""

    def attach(self, model: Any, *, seed: int) -> Any:
        """The model with the adapter on it. At the start it computes what ``model`` computes."""
        ...

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter alone, loadable without tunekit."""
        ...

    def merge(self, model: Any) -> Any:
        """A plain model with the adapter folded into the base weights, in the base's full precision."""
        ...

    def detached(self, model: Any) -> Any:
        """A context manager in which ``model`` computes what the base computes."""
        ...


@runtime_checkable
class ModelSource(Protocol):
    """A model that was found but not yet loaded. Making one reads no weights and imports no torch."""

    ref: str
    """What the user wrote."""
    kind: str
    """``folder``, ``gguf``, ``hub`` or ``memory``."""

    def describe(self) -> str:
        """One line for people: what and where."""
        ...

    def problems(self) -> Sequence[str]:
        """What would make :meth:`load` fail, one sentence each, such as a missing tokenizer; empty if nothing."""
        ...

    def fingerprint(self) -> str:
        """Hash over the files, or over the id and revision; equal content, equal fingerprint."""
        ...

    def load(self) -> LoadedModel:
        """Read the weights.

        Raises:
            ArtifactError: if files are missing or damaged.
            MissingDependencyError: if a package is missing.
        """
        ...


@runtime_checkable
class TokenizerSource(Protocol):
    """What a :class:`ModelSource` may offer besides, so that ``Pipeline.preview`` need not load the model."""

    def tokenizer(self) -> tuple[Any, ModelFacts]:
        """The model's tokenizer, and what is known of the model. No weights are read.

        Raises:
            ArtifactError: if files are missing or damaged.
            MissingDependencyError: if a package is missing.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest:
    """Score each choice as a continuation of ``context``: summed log-probability of its tokens.

    ``prefix`` is the leading part of ``context`` that many requests share (few-shot examples); runners may compute it
    once. Context and choice are tokenized together; the boundary is found by offsets.
    """

    context: str
    choices: tuple[str, ...]
    prefix: str = ""
    parts: tuple[str, ...] = ()
    """``context`` in pieces: what stands before the examples, one piece per few-shot example, the question. Joined they
    are ``context``. When it does not fit the model, examples are left out from the front; the question is never cut."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Continue ``context`` greedily until one of ``stop`` appears or ``max_new_tokens`` are written."""

    context: str
    stop: tuple[str, ...]
    max_new_tokens: int
    prefix: str = ""
    parts: tuple[str, ...] = ()
    """As in :class:`ChoiceRequest`."""


Request = ChoiceRequest | GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Response:
    """The model's answer to one request."""

    logprobs: tuple[float, ...] = ()
    """For a ``ChoiceRequest``: summed log-probability of each choice."""
    text: str = ""
    """For a ``GenerationRequest``: the text, without the stop string."""
    truncated: bool = False
    """The context did not fit and was cut, or the length limit ended the text."""


@runtime_checkable
class Benchmark(Protocol):
    """Questions, how to ask them, and how to judge the answers. One screen of code each."""

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The questions, in a fixed order, from the user's folder or file.

        ``source`` None asks for the embedded sample. ``options`` are those of the evaluate step; ``limit`` is applied
        by the caller.

        Raises:
            DataError: naming file, row and field.
        """
        ...

    def request(self, row: Mapping[str, Any]) -> Request:
        """What the model is asked."""
        ...

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        """Whether the answer is right. ``prompt_hash`` may stay empty: the caller fills it in."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """How it measures: shots, extraction, averaging, source. Recorded with the score."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Receives every event of a run. Built as ``Target(options)``."""

    def on_event(self, event: Event) -> None:
        """Take one event. An exception is isolated and reported once."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing ``check`` noticed."""

    level: str
    """``error`` (the run is refused), ``warning``, or ``note``."""
    step: str | None
    """Name of the step, or None for the whole plan."""
    code: str
    """Stable identifier, such as ``unknown-option``."""
    message: str
    """One sentence."""
    fix: str = ""
    """What to type or do."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts as JSON types."""

    def __str__(self) -> str:
        where = f"{self.step}: " if self.step else ""
        return f"{self.level}: {where}{self.message}" + (f" Fix: {self.fix}" if self.fix else "")
