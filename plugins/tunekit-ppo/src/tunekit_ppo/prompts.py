"""The order in which prompts are asked."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["PromptOrder"]


class PromptOrder:
    """Prompts pass by pass, each pass in an order of its own, which only ``seed`` and the number of the pass decide."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def numbers(self, begin: int, size: int) -> list[int]:
        """The prompts at places ``begin`` to ``begin + size`` of the endless order."""
        return [number for number, _ in zip(self._from(begin), range(size), strict=False)]

    def _from(self, place: int) -> Iterator[int]:
        done, rest = divmod(place, self.count)
        while True:
            order = list(range(self.count))
            random.Random(f"{self.seed} {done}").shuffle(order)
            yield from order[rest:]
            done, rest = done + 1, 0
