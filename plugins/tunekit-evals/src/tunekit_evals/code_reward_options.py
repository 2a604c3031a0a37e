"""Options of the reward ``code-tests``. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from tunekit.errors import StepError
from tunekit.plugins import Options
from tunekit_evals.code_tests import free_names

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
    """Column with the name of the tested function. Rows without one: the function that the tests call and nothing else
    defines."""
    setup: list[str] = Field(default_factory=lambda: ["test_imports", "test_setup_code"])
    """Columns with code that stands before the tests, where the rows have them (MBPP's)."""
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

    def check_rows(self, schema: str, rows: Sequence[Mapping[str, Any]], whole: bool) -> None:
        """Raises:
        StepError: if the tests of a row are not Python, or do not say which function they are about.
        """
        for row in rows:
            columns = row.get("columns") or {}
            if columns.get(self.tests) is not None:
                self.tested_names(columns)

    def written_tests(self, row: Mapping[str, Any]) -> str:
        """The tests of a row, behind what sets them up."""
        return "\n".join(_lines(row[name]) for name in (*self.setup, self.tests) if row.get(name))

    def tested_names(self, row: Mapping[str, Any]) -> tuple[list[str], list[str], bool]:
        """What the tests of a row use; see :func:`tunekit_evals.code_tests.free_names`.

        Raises:
            StepError: if the tests are not Python, or nothing says which function they are about.
        """
        tests = self.written_tests(row)
        try:
            names, modules, has_check = free_names(tests)
        except SyntaxError as problem:
            raise StepError(
                "The reward code-tests cannot read the tests of a row: they are not Python.",
                code="reward-tests",
                asked=f"Python in the column {self.tests!r}",
                found=f"{problem.msg}: {tests[:200]}",
                fix="mend the row, or leave it out",
                details={"reward": "code-tests", "column": self.tests},
            ) from None
        if not (row.get(self.entry_point) or names or has_check):
            raise StepError(
                "The reward code-tests cannot see which function is tested.",
                code="reward-column",
                asked=f"a column {self.entry_point!r}, or tests that call the function",
                found=tests[:200],
                fix="add a column with the function's name; option entry_point says how it is called",
                details={"reward": "code-tests", "column": self.tests},
            )
        return names, modules, has_check


def _lines(given: Any) -> str:
    return given if isinstance(given, str) else "\n".join(map(str, given))
