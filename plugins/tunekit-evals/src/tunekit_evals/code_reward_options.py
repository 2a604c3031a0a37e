"""Options of the reward ``code-tests``. Torch-free."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tunekit.plugins import Options

__all__ = ["CodeTestsOptions"]


class CodeTestsOptions(Options):
    """1 for a completion whose program passes the tests of its row, 0 otherwise.

    A completion continues the prompt where that is the head of a function (HumanEval); otherwise the program is read
    out of the answer, from its fenced blocks.
    """

    tests: str = "test"
    """Column with the tests: Python that raises if the program is wrong, or a list of such lines (MBPP's
    ``test_list``). A function ``check`` in them is called with the tested function, as in HumanEval."""
    entry_point: str = "entry_point"
    """Column with the name of the tested function. Rows without one: the function that the assertions call."""
    problem: str | None = None
    """Column with imports, helpers and head of the function, which an answer may leave out. None: the prompt, where it
    is that itself."""
    passed: float = 1.0
    """Score of a program that passes."""
    failed: float = 0.0
    """Score of any other."""
    cpu_seconds: int = Field(default=3, ge=1, json_schema_extra={"unit": "seconds"})
    """Computing time of a program."""
    wall_seconds: float = Field(default=15.0, gt=0, json_schema_extra={"unit": "seconds"})
    """Time until a program is ended, whatever it does."""
    memory_mb: int = Field(default=1024, ge=64, json_schema_extra={"unit": "MiB"})
    """Memory of a program."""
    allow_unsafe: bool = False
    """Run programs without isolation where there is none."""

    @model_validator(mode="after")
    def _passing_is_better(self) -> Self:
        if self.passed <= self.failed:
            raise ValueError(f"passed={self.passed:g} must be above failed={self.failed:g}")
        return self
