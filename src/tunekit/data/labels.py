"""The names of the classes or tags that a data set has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.errors import DataError

__all__ = ["MOST_LABELS", "label_counts", "label_names"]

MOST_LABELS = 10_000
"""Most different labels of one data set; more are taken for a column that holds no classes."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def label_counts(rows: Iterable[Mapping[str, Any]], *, most: int = MOST_LABELS) -> dict[str, int]:
    """How often each class (``classification`` rows) or tag (``token_classification`` rows) stands in ``rows``.

    In the order of :func:`label_names`. The rows are read once and not kept.

    Args:
        rows: a :class:`tunekit.data.Dataset`, or canonical rows.
        most: more different labels than this are an error.

    Raises:
        DataError: for rows of another shape, more than ``most`` labels, or only one label (nothing to tell apart); and
            as reading the rows does.
    """
    found: Counter[str] = Counter()
    name = str(getattr(rows, "name", "The data"))
    for number, row in enumerate(rows, 1):
        if "tags" in row:
            found.update(row["tags"])
        elif "label" in row and isinstance(row["label"], str):
            found[row["label"]] += 1
        else:
            raise DataError(
                f"{name} row {number} has no class and no tags.",
                code="no-labels",
                found=f"fields {', '.join(map(repr, row))}",
                fix="pass rows with text and label, or with tokens and tags",
            )
        if len(found) > most:
            raise DataError(
                f"{name} has more than {most:,} different labels in its first {number:,} rows.",
                code="too-many-labels",
                found=", ".join(repr(label[:40]) for label in list(found)[:5]) + " ...",
                fix='name the column of the classes, columns={"label": ...}; numbers to predict are a regression',
            )
    if len(found) < 2:
        raise DataError(
            f"{name} has {len(found)} different label{'s' * (len(found) != 1)}; there is nothing to tell apart.",
            code="one-label",
            found=", ".join(map(repr, found)),
            fix="use data with two or more labels, or raise limit= if it cuts them off",
        )
    return {label: found[label] for label in _sorted(found)}


def label_names(rows: Iterable[Mapping[str, Any]], *, most: int = MOST_LABELS) -> list[str]:
    """The different classes or tags in ``rows``: label ``i`` of a model is entry ``i``.

    Whole numbers are sorted as numbers (``-1, 0, 1, 2``), anything else by its characters; of BIO tags ``O`` is
    first, then each type with its prefixes (``O, B-LOC, I-LOC, B-PER, I-PER``). The order depends on the set of
    labels only, so that the same data give the same model.

    Raises:
        DataError: as :func:`label_counts` does.
    """
    return list(label_counts(rows, most=most))


def _sorted(labels: Iterable[str]) -> list[str]:
    names = list(labels)
    if all(_WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    if "O" in names:
        return sorted(names, key=_tag_order)
    return sorted(names)


def _tag_order(tag: str) -> tuple[bool, str, int, str]:
    prefix, dash, kind = tag.partition("-")
    if dash and len(prefix) == 1:
        return True, kind, "BISEULM".find(prefix), tag
    return tag != "O", tag, -1, tag
