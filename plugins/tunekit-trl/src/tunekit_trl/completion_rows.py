"""Tokenized prompts with completions, in four bytes a token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tunekit.plugins import hf

__all__ = ["CompletionRows"]


class CompletionRows:
    """Rows ``{"prompt_ids", "<name>_ids" ..., columns ...}`` for :class:`tunekit.plugins.hf.CompletionTrainer`.

    Args:
        names: of the completions of each row, in order, such as ``("chosen", "rejected")``.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._tokens = array("i")
        self._ends = array("q", [0])
        self._columns: dict[str, Any] = {}

    def add(self, prompt: Iterable[int], *completions: Iterable[int]) -> None:
        """Append a row; one completion for each name."""
        for part in (prompt, *completions):
            self._tokens.extend(part)
            self._ends.append(len(self._tokens))

    def set_column(self, name: str, values: Sequence[float]) -> None:
        """Give each row a number of this name."""
        if len(values) != len(self):
            raise ValueError(f"{len(values)} values of {name!r} for {len(self)} rows")
        self._columns[name] = np.asarray(values, dtype=np.float64)

    def set_reference(self, logps: Sequence[float]) -> None:
        """Add the columns ``ref_<name>_logps``; ``logps`` holds the completions of each row, row by row."""
        for at, name in enumerate(self.names):
            self.set_column(f"ref_{name}_logps", logps[at :: len(self.names)])

    def __len__(self) -> int:
        return (len(self._ends) - 1) // (1 + len(self.names))

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        parts = self._parts(number)
        row: dict[str, Any] = {"prompt_ids": parts[0]}
        row.update((f"{name}_ids", ids) for name, ids in zip(self.names, parts[1:], strict=True))
        row.update((name, float(values[number])) for name, values in self._columns.items())
        return row

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[number] for number in range(len(self)))

    def group(self, number: int) -> hf.PromptGroup:
        """A row's prompt and completions."""
        prompt, *completions = self._parts(number)
        return hf.PromptGroup(prompt, completions)

    def groups(self) -> Sequence[hf.PromptGroup]:
        """Of all rows; each is made when it is looked at."""
        return _Groups(self)

    def _parts(self, number: int) -> list[list[int]]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        width = 1 + len(self.names)
        ends = self._ends[number * width : (number + 1) * width + 1]
        return [self._tokens[begin:end].tolist() for begin, end in pairwise(ends)]


class _Groups(Sequence[hf.PromptGroup]):
    def __init__(self, rows: CompletionRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._rows.group(each) for each in range(*number.indices(len(self)))]
        return self._rows.group(number)
