"""Options of the adapters. Pydantic, torch-free."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tunekit.plugins import Options

__all__ = ["ALL_LINEAR", "LoraOptions"]

ALL_LINEAR: Final = "all-linear"
"""Every linear layer but the output layer."""


def _listed(value: object) -> object:
    """One name or a sequence of names as a list; plans hold sequences as tuples."""
    if isinstance(value, str) and value != ALL_LINEAR:
        return [value]
    return list(value) if isinstance(value, tuple) else value


class LoraOptions(Options):
    """LoRA: W + (alpha / r) B A with B zero at the start (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(default=8, ge=1)
    """Rank of the update of each layer."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale: the update is multiplied by ``alpha / r`` (``alpha / sqrt(r)`` with ``rslora``). None: ``2 * r``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the update. Preference optimisation runs without dropout and says so."""
    targets: Annotated[Literal["all-linear"] | list[str], BeforeValidator(_listed)] = ALL_LINEAR
    """Which layers: ``all-linear`` (every linear layer but the output layer) or names such as ``["q_proj", "v_proj"]``.
    A name stands for every layer whose path ends with it."""
    rslora: bool = False
    """Rank-stabilised scale ``alpha / sqrt(r)`` (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Train magnitude and direction apart (Liu et al. 2024, arXiv:2402.09353)."""
    train_new_tokens: bool = True
    """Train the embeddings of tokens that ``extend_vocabulary`` added, beside the adapter. Without it they would stay
    where they started, since LoRA leaves embeddings alone."""
    init: Literal["default", "gaussian"] = "default"
    """How A is drawn: ``default`` Kaiming-uniform as in the reference code, ``gaussian`` normal with deviation 1/r."""

    @model_validator(mode="after")
    def _targets_given(self) -> Self:
        if self.targets != ALL_LINEAR and (not self.targets or not all(self.targets)):
            raise ValueError("targets must be 'all-linear' or at least one layer name")
        return self

    def resolve(self, *, adapter: str | None) -> Self:
        """``alpha`` becomes ``2 * r`` when it was left out."""
        return self if self.alpha is not None else self.model_copy(update={"alpha": 2.0 * self.r})
