"""Rows that repeat an earlier row: the same text, or nearly the same words. The first occurrence stays."""

from __future__ import annotations

import importlib
from array import array
from typing import Any

from tunekit.data.select import Filter, Row
from tunekit.data.text import row_key, row_target, row_texts, words
from tunekit.errors import MissingDependencyError

__all__ = ["THRESHOLD", "Exact", "Near", "filters_for", "require_near"]

SHINGLE = 5
"""Words of a shingle."""

THRESHOLD = 0.8
"""Rows are near-duplicates from this share of common shingles (Jaccard similarity)."""

PERMUTATIONS = 128
SEED = 1

INSTALL = 'pip install "tunekit[dedupe]"'


class Exact(Filter):
    """Leaves out rows whose normalised text (NFC, white space collapsed) was there before. Targets do not count.

    Takes 22 to 32 bytes a row that stays, and 8 more where rows have targets.
    """

    reason = "duplicate"

    def __init__(self) -> None:
        self._seen = _Keys()
        self._numbers = array("Q")
        self._targets = array("q")  # hashes, in the order of the rows; empty while none has a target

    def look(self, row: Row, number: int) -> dict[str, Any] | None:
        """The number of the earlier row with the same text, and whether its target differs."""
        key = row_key(row)
        found = self._seen.find_or_add(key)
        target = row_target(row)
        if found is None:
            if target and not self._targets:
                self._targets = array("q", bytes(8 * len(self._numbers)))
            self._numbers.append(number)
            if target or self._targets:
                self._targets.append(hash(target))
            return None
        match: dict[str, Any] = {"same_as": self._numbers[found]}
        if target and (not self._targets or self._targets[found] != hash(target)):
            match["conflict"] = True
        return match


class _Keys:
    """64-bit keys and the order in which they came: an open-addressing hash table, at most two thirds full."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._slots = array("I", bytes(4 * 1024))
        self._mask = len(self._slots) - 1

    def find_or_add(self, key: int) -> int | None:
        """Index of a key that was there before; None if it is new, and then it is added."""
        slot = key & self._mask
        while index := self._slots[slot]:
            if self._keys[index - 1] == key:
                return index - 1
            slot = (slot + 1) & self._mask
        self._keys.append(key)
        self._slots[slot] = len(self._keys)
        if 3 * len(self._keys) > 2 * len(self._slots):
            self._grow()
        return None

    def _grow(self) -> None:
        self._slots = array("I", bytes(8 * len(self._slots)))
        self._mask = len(self._slots) - 1
        for index, key in enumerate(self._keys, 1):
            slot = key & self._mask
            while self._slots[slot]:
                slot = (slot + 1) & self._mask
            self._slots[slot] = index


class Near(Filter):
    """Leaves out rows that share :data:`THRESHOLD` of their word 5-grams with an earlier row.

    Candidates are found by MinHash and locality-sensitive hashing (Broder 1997; the ``datasketch`` package, 128
    permutations with a fixed seed) and then compared exactly, so that what is left out is always above the threshold.
    Of pairs just above it a few percent are not found. Takes about 1 kB a row and 4 bytes a word.
    """

    reason = "near-duplicate"

    def __init__(self) -> None:
        self._datasketch = require_near()
        # Few misses are worth more candidates, since candidates are compared exactly.
        self._index = self._datasketch.MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self._shingles: list[Any] = []
        self._numbers = array("Q")  # of the rows in the source, of which one may give several

    def look(self, row: Row, number: int) -> dict[str, Any] | None:
        """The number of the most similar earlier row, and how similar it is."""
        shingles = _shingles(row)
        sketch = self._datasketch.MinHash(num_perm=PERMUTATIONS, seed=SEED)
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in sorted(shingles)])
        here = frozenset(map(_hash, shingles))
        best, most = None, 0.0
        for candidate in sorted(self._index.query(sketch)):
            there = self._shingles[candidate]
            common = sum(1 for shingle in there if shingle in here)
            similarity = common / (len(here) + len(there) - common)
            if similarity >= THRESHOLD and similarity > most:
                best, most = candidate, similarity
        if best is not None:
            return {"like": self._numbers[best], "similarity": round(most, 3)}
        self._index.insert(len(self._shingles), sketch)
        self._shingles.append(array("Q", sorted(here)))
        self._numbers.append(number)
        return None


def _hash(text: str) -> int:
    return hash(text) & (2**64 - 1)


def _shingles(row: Row) -> set[str]:
    found = [word for text in row_texts(row) for word in words(text)]
    if len(found) <= SHINGLE:
        return {" ".join(found)}
    return {" ".join(found[start : start + SHINGLE]) for start in range(len(found) - SHINGLE + 1)}


def require_near() -> Any:
    """The package that near-duplicates are found with.

    Raises:
        MissingDependencyError: with the exact install line.
    """
    try:
        return importlib.import_module("datasketch")
    except ImportError as error:
        raise MissingDependencyError(
            "Finding near-duplicates needs the package datasketch.",
            asked='dedupe="near"',
            fix=INSTALL,
            details={"requirements": ["datasketch>=1.6.5,<3"]},
        ) from error


def filters_for(dedupe: str | None) -> list[Filter]:
    """The rules of the option ``dedupe``: ``exact``, or ``near``, which leaves out exact copies first."""
    if dedupe is None:
        return []
    return [Exact(), Near()] if dedupe == "near" else [Exact()]
