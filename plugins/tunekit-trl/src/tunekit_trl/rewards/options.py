"""Options of the rewards. Pydantic."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tunekit.plugins import Options

__all__ = ["ExactMatchOptions", "FormatOptions", "LengthOptions"]


class ExactMatchOptions(Options):
    """1 for a completion that comes to the right answer, 0 otherwise.

    A right answer that is a number is compared as a number, whatever its form; tuples, intervals and sets part by part;
    anything else as a text without spaces and case. A number inside an expression, such as the 2 of ``x^2``, is no
    answer.
    """

    answer: str = "answer"
    """Column with the right answer, or with a worked solution that ends in it; a list: any of them is right. A row
    without one (None) is not scored."""
    extract: Literal["auto", "gsm8k", "boxed", "last-number", "text"] = "auto"
    """Where the answer of a completion stands: ``boxed``: the last ``\\boxed{}``; ``gsm8k``: behind the last ``####``;
    ``last-number``; ``text``: all of it. ``auto``: all of it; else, behind ``</think>``, the first that is there of the
    last ``<answer>...</answer>``, ``boxed``, ``gsm8k``, what follows "answer is", the last line; where nothing marks
    it, also the last number, choice ("(B)") or yes and no if the right answer is one of these."""
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    """Largest difference of numbers, as a share of the right one."""
    right: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong answer, or none."""

    @model_validator(mode="after")
    def _right_is_better(self) -> Self:
        if self.right <= self.wrong:
            raise ValueError(f"right={self.right:g} must be above wrong={self.wrong:g}")
        return self


class FormatOptions(Options):
    """1 for a completion that has the wanted form, 0 otherwise."""

    pattern: str = r"<think>.*?</think>\s*<answer>.*?</answer>\s*"
    """Regular expression (Python's ``re``; a dot matches line breaks). The default is the form of DeepSeek-R1
    (arXiv:2501.12948): thoughts, then the answer."""
    match: Literal["full", "start", "search"] = "full"
    """``full``: the whole completion, but for spaces around it, is of this form; ``start``: its beginning; ``search``:
    some part of it."""
    right: float = 1.0
    """Score of the wanted form."""
    wrong: float = 0.0
    """Score of any other."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value, re.DOTALL)
        except re.error as problem:
            raise ValueError(f"is no regular expression: {problem}") from None
        return value

    @model_validator(mode="after")
    def _right_is_better(self) -> Self:
        if self.right <= self.wrong:
            raise ValueError(f"right={self.right:g} must be above wrong={self.wrong:g}")
        return self


class LengthOptions(Options):
    """0 for a completion of a good length, falling to -1 the longer (or shorter) it is.

    Unless ``target`` is given this is the soft punishment of overlong completions of DAPO (arXiv:2503.14476, equation
    13): 0 up to ``max - buffer``, then falling in a straight line to -1 at ``max``. With ``target`` it is minus the
    difference to it as a share of ``target``, at least -1 (after L1, arXiv:2503.04697).
    """

    unit: Literal["tokens", "characters", "words"] = "tokens"
    """What is counted. Tokens are those the model wrote, with the one that ended the completion."""
    target: int | None = Field(default=None, ge=1)
    """The wanted length."""
    max: int | None = Field(default=None, ge=1)
    """Longest length. None, and no ``target``: the step's ``max_new_tokens``."""
    buffer: int | None = Field(default=None, ge=0)
    """Length over which the punishment grows before ``max``, and at most that; 0: all at once behind ``max``. None: a
    fifth of ``max``, as in the paper."""

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        if self.target is not None:
            given = [name for name in ("max", "buffer") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{' and '.join(given)} would have no effect beside target")
        elif self.max is None and self.unit != "tokens":
            raise ValueError(f"unit={self.unit!r} needs max or target: the step's limit counts tokens")
        if self.max is not None and (self.buffer or 0) > self.max:
            raise ValueError(f"buffer={self.buffer} is longer than max={self.max}")
        return self
