"""Tags of words: the schemes of the field, turned into BIO (IOB2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["bio_problem", "is_entities", "to_bio"]

_INSIDE = {"I": "I", "E": "I", "L": "I", "M": "I"}
_BEGIN = {"B": "B", "S": "B", "U": "B"}


def is_entities(tags: Iterable[str]) -> bool:
    """Whether every tag is ``O`` or a prefix of BIO, IOB, BIOES or BILOU with a type, such as ``B-LOC``."""
    found = set(tags)
    return found != {"O"} and all(
        tag == "O" or (len(tag) > 2 and tag[1] == "-" and (tag[0] in _INSIDE or tag[0] in _BEGIN)) for tag in found
    )


def to_bio(tags: Sequence[str]) -> list[str]:
    """The same entities in BIO: each begins with ``B-`` and goes on with ``I-``.

    ``E-``, ``L-`` and ``M-`` become ``I-``; ``S-`` and ``U-`` become ``B-``. An inside tag that does not continue an
    entity of its type begins one, as in IOB1 (Tjong Kim Sang & Veenstra 1999).
    """
    made = []
    before = "O"
    for tag in tags:
        if tag == "O":
            before = "O"
        else:
            kind = tag[2:]
            inside = tag[0] in _INSIDE and before != "O" and before[2:] == kind
            before = f"{'I' if inside else 'B'}-{kind}"
        made.append(before)
    return made


def bio_problem(before: Sequence[str], after: Sequence[str]) -> int:
    """How many tags :func:`to_bio` changed."""
    return sum(left != right for left, right in zip(before, after, strict=True))
