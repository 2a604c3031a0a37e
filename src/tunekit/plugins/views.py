"""What a trainer is about to learn, as data: tokens, labels, weights, turns. For people and for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunekit.data import Dataset
    from tunekit.plan import ResolvedStep

__all__ = ["ModelFacts", "PreviewContext", "PreviewRow", "TokenView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One token of an example."""

    id: int
    text: str
    """The characters it stands for, as the tokenizer decodes it alone."""
    label: int | str | None
    """What is learned here: the token id itself, a tag ..., or None where nothing is (masked)."""
    weight: float = 1.0
    """Weight of its loss; 0 where ``label`` is None."""
    turn: int | None = None
    """0-based number of the message it belongs to, or of the document in a packed block."""
    role: str = ""
    """``user``, ``assistant`` ..., ``prompt``, ``completion``, ``chosen``, ``rejected``, or empty."""
    special: bool = False


@dataclass(frozen=True, kw_only=True)
class PreviewRow:
    """One training example."""

    number: int
    """1-based number of the data row, or of the packed block."""
    tokens: tuple[TokenView, ...]
    cut: int = 0
    """Tokens that were cut off."""
    target: str = ""
    """What is learned for the example as a whole, such as a class or a score."""
    problem: str = ""
    """Why the row cannot be trained on; ``tokens`` may be empty then."""
    code: str = ""
    """Stable identifier of the problem, such as ``no-targets``."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model without its weights."""

    positions: int | None = None
    """Longest input in tokens."""
    embeddings: int | None = None
    """Rows of the embedding matrix."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end generation, from the generation config."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The model's config as plain data; empty if unknown."""


@dataclass(kw_only=True)
class PreviewContext:
    """What a trainer's ``preview`` callable is given."""

    step: ResolvedStep
    options: Any
    """The validated options, as in :class:`StepContext`."""
    seed: int
    data: Dataset
    further_data: Mapping[str, Dataset] = field(default_factory=dict)
    _tokenizer: Callable[[], tuple[Any, ModelFacts]] = field(repr=False)

    def tokenizer(self) -> tuple[Any, ModelFacts]:
        """Tokenizer of the step's input model, and what is known of that model. No weights are read.

        Raises:
            ArtifactError: if it cannot be had, such as that of a step that has not run yet.
        """
        return self._tokenizer()
