"""What a component is known not to do yet, said in its tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunekit.errors import nearest

__all__ = ["Gap", "gap_problem"]


@dataclass(frozen=True)
class Gap:
    """A test of a suite that a component fails today, and how.

    It is strict on both sides: the test must fail with this exception, and as soon as it passes the suite fails, so
    that the entry is taken out. ``AssertionError`` is the exception of a check of the suite that does not hold.

    Args:
        reason: why, in one sentence.
        raises: exception class, or several; the narrowest that fits.

    Raises:
        ValueError: if the reason is empty, or no exception class or one that covers everything is named.
    """

    reason: str
    raises: type[BaseException] | tuple[type[BaseException], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise ValueError("a gap needs a reason")
        classes = self.raises if isinstance(self.raises, tuple) else (self.raises,)
        if not classes or not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
            raise ValueError(f"a gap names the exception class that the test raises, found {self.raises!r}")
        if {Exception, BaseException} & set(classes):
            raise ValueError("a gap that takes any exception hides every other bug; name the exception that is raised")


def gap_problem(owner: str, gaps: Mapping[str, Gap], tests: Iterable[str]) -> str:
    """What is wrong with the gaps that the class ``owner`` declares; empty if nothing.

    ``tests`` are the names of its test functions. A key may name one case of a parametrised test, ``test_x[case]``.
    """
    known = sorted(tests)
    for name, gap in gaps.items():
        if name.partition("[")[0] not in known:
            close = nearest(name, known, limit=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; its tests: {', '.join(known)}"
            return f"{owner}.gaps names {name!r}, which is no test of it{hint}"
        found: object = gap
        if not isinstance(found, Gap):
            return f"{owner}.gaps[{name!r}] is {gap!r}, not a Gap(reason, raises=...)"
    return ""
