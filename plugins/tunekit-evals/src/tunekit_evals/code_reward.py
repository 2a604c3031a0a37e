"""The reward ``code-tests``: whether the program that a completion makes passes tests, run in isolation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.errors import StepError, nearest
from tunekit.plugins import StepContext
from tunekit_evals.code_reward_options import CodeTestsOptions
from tunekit_evals.code_tests import tested, with_imports
from tunekit_evals.humaneval import extract, isolation_notice
from tunekit_evals.sandbox import Limits, Sandbox

__all__ = ["CodeTests"]

_STEP_COLUMNS = ("completion_ids", "finished")


class CodeTests:
    """1 for a completion whose program passes, 0 otherwise; see :class:`CodeTestsOptions`.

    The tests run in a process of their own: a program can neither see them nor say that they passed.
    """

    def __init__(self, options: CodeTestsOptions) -> None:
        self.options = options
        self._sandbox: Sandbox | None = None

    def start(self, ctx: StepContext) -> None:
        """Start the sandbox before anything is generated.

        Raises:
            MissingDependencyError: if code cannot be isolated here and ``allow_unsafe`` is not set.
        """
        ctx.notice(*isolation_notice(self._ready().isolation))

    def _ready(self) -> Sandbox:
        if self._sandbox is None:
            options = self.options
            limits = Limits(
                cpu_seconds=options.cpu_seconds,
                wall_seconds=options.wall_seconds,
                memory_bytes=options.memory_mb << 20,
            )
            self._sandbox = Sandbox(limits, allow_unsafe=options.allow_unsafe)
        return self._sandbox

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """One score for each completion; None where the row has no tests.

        Raises:
            StepError: if the rows have no column of that name, or nothing says which function is tested.
        """
        name = self.options.tests
        if name not in columns:
            have = [column for column in columns if column not in _STEP_COLUMNS]
            raise StepError(
                f"The reward code-tests needs a column {name!r}, and the prompts' rows have none.",
                code="reward-column",
                asked=name,
                found=", ".join(have) or "no further columns",
                suggestions=nearest(name, have),
                fix='reward={"name": "code-tests", "tests": "<column>"} names another one',
                details={"reward": "code-tests", "column": name},
            )
        jobs: list[dict[str, str]] = []
        places: list[int] = []
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {column: values[number] for column, values in columns.items()}
            if row[name] is None:
                continue
            jobs.append(self._job(prompt, completion, row))
            places.append(number)
        scores: list[float | None] = [None] * len(completions)
        for number, verdict in zip(places, self._ready().check_all(jobs), strict=True):
            scores[number] = self.options.passed if verdict.passed else self.options.failed
        return scores

    def _job(self, prompt: Any, completion: Any, row: Mapping[str, Any]) -> dict[str, str]:
        tests = self.options.written_tests(row)
        names, modules, has_check = self.options.tested_names(row)
        head = row.get(self.options.problem) if self.options.problem else None
        head = head if isinstance(head, str) else prompt if isinstance(prompt, str) and _is_head(prompt) else ""
        text = completion if isinstance(completion, str) else "\n".join(str(m.get("content") or "") for m in completion)
        entry = row.get(self.options.entry_point) or tested(names, text, head)
        tests = with_imports(tests, names, modules, entry)
        if has_check:
            tests += f"\ncheck({entry or '_'})\n"
        continues = isinstance(prompt, str) and head == prompt and f"def {entry}" not in text and "```" not in text
        return {
            "solution": head + text if continues else extract(text, head, entry or "_"),
            "tests": tests,
            "entry_point": entry or "_",
            "preamble": head + "    pass\n" if head else "",
        }


def _is_head(prompt: str) -> bool:
    """Whether a prompt is Python up to a function's docstring."""
    try:
        compile(prompt + "    pass\n", "prompt", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return re.search(r"^def ", prompt, re.MULTILINE) is not None
