"""Two scores of one benchmark, or two runs, compared row by row. Standard library only."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunekit import _statistics as statistics
from tunekit import storage
from tunekit.artifacts import Score, ScoredRow
from tunekit.errors import DataError, UnknownNameError, nearest

__all__ = ["Comparison", "Flip", "RunComparison", "SubjectChange", "compare_runs", "compare_scores"]

LEVEL = 0.05
"""Below this a p-value counts as a difference."""

LEAST = 6
"""With fewer rows no paired test can show a difference: 2 / 2**5 is above 0.05."""

_OUTCOMES = frozenset(
    (
        *("rows", "truncated_rows", "prompts_with_shots_dropped", "prompts_cut", "longest_prompt_tokens"),
        *("mean_prompt_tokens", "prompts_sha256", "stops", "interval", "contamination", "bos_tokens"),
        *("boundary_merges", "seconds", "device", "batch_size", "batch_tokens"),
    )
)
"""Facts of a protocol that follow from model and machine. That they differ makes no other measurement."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A row that went from wrong to right, or from right to wrong, or whose value moved."""

    id: str
    group: str
    before: float
    after: float
    target: str
    prediction_before: str
    prediction_after: str


@dataclass(frozen=True, kw_only=True)
class SubjectChange:
    """How one subject moved."""

    name: str
    n: int
    """Rows of it that both measured."""
    before: float
    after: float
    p_value: float
    p_adjusted: float
    """After Holm's correction for all subjects of the benchmark."""

    @property
    def difference(self) -> float:
        """``after`` minus ``before``."""
        return self.after - self.before

    @property
    def moved(self) -> bool:
        """Whether the change is more than chance."""
        return self.p_adjusted < LEVEL


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One benchmark, measured twice on the same questions."""

    name: str
    metric: str
    higher_is_better: bool
    n: int
    """Rows that both measured, asked in the same words."""
    before: float
    after: float
    """Value of each, over the rows that both measured."""
    difference: float
    """``after`` minus ``before``."""
    ci_low: float
    ci_high: float
    """95% interval of the difference."""
    p_value: float
    """Two-sided, of no difference."""
    method: str
    """How interval and p-value were found."""
    wins: int
    """Rows that are better after."""
    losses: int
    """Rows that are worse after."""
    ties: int
    flips: tuple[Flip, ...] = ()
    """The rows that moved, worst losses first."""
    subjects: tuple[SubjectChange, ...] = ()
    """By size of the change."""
    unpaired: Mapping[str, int] = field(default_factory=dict)
    """Rows that were left out, by reason."""
    flags: tuple[str, ...] = ()
    """What a reader must know before believing the difference."""
    protocol_differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Facts of the two protocols that differ."""

    @property
    def gain(self) -> float:
        """The difference, positive where it is for the better."""
        return self.difference if self.higher_is_better else -self.difference

    def verdict(self, p_value: float | None = None) -> str:
        """``better``, ``worse``, ``no difference shown`` or ``too few rows``, by ``p_value`` or the comparison's own.

        Neither better nor worse where the interval covers 0, nor with fewer than 6 rows.
        """
        if self.n < LEAST:
            return "too few rows"
        p = self.p_value if p_value is None else p_value
        if not p < LEVEL or not self.difference or self.ci_low <= 0 <= self.ci_high:
            return "no difference shown"
        return "better" if self.gain > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        from tunekit._comparison_view import one_line

        return one_line(self)


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """All benchmarks that two runs, or two evaluations of one run, share."""

    before: str
    after: str
    """What was compared, for people."""
    benchmarks: Mapping[str, Comparison]
    p_adjusted: Mapping[str, float]
    """P-value of each benchmark after Holm's correction for all of them."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Benchmarks that could not be compared, and why."""
    same_weights: bool = False
    """Whether both measured the same weights."""

    def __getitem__(self, name: str) -> Comparison:
        """The comparison of one benchmark.

        Raises:
            UnknownNameError: if it was not compared.
        """
        if name in self.benchmarks:
            return self.benchmarks[name]
        raise UnknownNameError(
            f"{name!r} was not compared.",
            code="unknown-benchmark",
            asked=name,
            found=self.left_out.get(name, ", ".join(self.benchmarks)),
            suggestions=nearest(name, self.benchmarks),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.benchmarks)

    def __len__(self) -> int:
        return len(self.benchmarks)

    def verdict(self, name: str) -> str:
        """As :meth:`Comparison.verdict`, after the correction for all benchmarks."""
        return self[name].verdict(self.p_adjusted[name])

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "before": self.before,
            "after": self.after,
            "same_weights": self.same_weights,
            "benchmarks": {
                name: {**one.to_dict(), "p_adjusted": self.p_adjusted[name], "verdict": self.verdict(name)}
                for name, one in self.benchmarks.items()
            },
            "left_out": dict(self.left_out),
        }

    def to_markdown(self) -> str:
        """A table, what moved, and what a reader must know."""
        from tunekit._comparison_view import to_markdown

        return to_markdown(self)

    def to_svg(self) -> str:
        """The differences with their intervals, as a picture of its own."""
        from tunekit._comparison_view import to_svg

        return to_svg(self)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one HTML file without scripts or links to elsewhere, and return its path.

        Raises:
            ArtifactError: if it cannot be written.
        """
        from tunekit._comparison_view import to_html

        target = Path(path)
        storage.write_text(target, to_html(self))
        return target

    def __str__(self) -> str:
        return self.to_markdown()


def compare_scores(a: Score, b: Score, *, prompts: str = "same", name: str = "") -> Comparison:
    """Compare two scores of one benchmark on the rows that both measured.

    Rows are paired by id, and count only where both were asked in the same words (equal prompt hashes) and for the same
    right answer. Right-or-wrong rows are tested with McNemar's exact test and Newcombe's interval; rows that count for
    a value by flipping the signs of their differences, with Student's interval.

    Args:
        a: the score before, or of the first model.
        b: the score after, or of the second. The difference is ``b`` minus ``a``.
        prompts: ``"same"``, or ``"any"``: pair rows by id even where they were asked in other words, such as with and
            without a chat template. That compares ways of asking along with models, and is flagged.
        name: how to call the benchmark.

    Raises:
        DataError: if the scores cannot be compared: other benchmarks, metrics or setups, or no row asked the same way.
        ArtifactError: if rows cannot be read.
    """
    if prompts not in ("same", "any"):
        raise DataError(f"prompts={prompts!r} means nothing.", code="prompts", fix='prompts="same" or prompts="any"')
    name = name or a.benchmark
    _comparable(a, b, prompts)
    before, after = list(a.iter_rows()), list(b.iter_rows())
    pairs, unpaired = _paired(before, after, prompts)
    differing = _protocol_differences(a, b)
    if not pairs:
        raise DataError(
            f"The two scores of {name} have no row in common.",
            code="unpaired",
            found=", ".join(f"{count} {reason}" for reason, count in unpaired.items()) or "no rows",
            fix="measure both the same way; "
            + (
                'prompts="any" pairs rows by id, whatever the words'
                if unpaired.get("asked in other words")
                else "both on the same data"
            ),
            details={"protocol_differences": {key: list(values) for key, values in differing.items()}},
        )
    # One of the two may have equal means over rows and over subjects by chance.
    both = _kinds(a, before) & _kinds(b, after)
    kind = "mean" if "mean" in both else "macro" if "macro" in both else "function"
    return _compared(name, a, b, pairs, unpaired, differing, kind)


def _comparable(a: Score, b: Score, prompts: str) -> None:
    unscored = [score for score in (a, b) if score.protocol.get("scored") is False]
    if unscored:
        raise DataError(
            f"{unscored[0].benchmark} was not scored, so there is nothing to compare.",
            code="not-comparable",
            found=unscored[0].metric,
            fix="measure a split whose right answers are public",
        )
    for what, left, right in (
        ("benchmarks", a.benchmark, b.benchmark),
        ("metrics", a.metric, b.metric),
        ("directions", a.higher_is_better, b.higher_is_better),
        ("setups", a.setup, b.setup),
    ):
        # A score whose own way of asking equals a published setup names it only where setups were asked for.
        if left != right and (what != "setups" or (prompts == "same" and left and right)):
            raise DataError(
                f"Scores of different {what} cannot be compared.",
                code="not-comparable",
                asked=f"{a.benchmark} with {b.benchmark}",
                found=f"{left or 'the default'} and {right or 'the default'}",
                fix="measure both the same way" + (', or say prompts="any"' if what == "setups" else ""),
            )


def _paired(
    before: Sequence[ScoredRow], after: Sequence[ScoredRow], prompts: str
) -> tuple[list[tuple[ScoredRow, ScoredRow]], dict[str, int]]:
    pairs = []
    unpaired: dict[str, int] = {}

    def leave(reason: str, count: int = 1) -> None:
        if count:
            unpaired[reason] = unpaired.get(reason, 0) + count

    counts = [Counter(row.id for row in rows) for rows in (before, after)]
    # Which of the rows of one id answers which question cannot be told.
    twice = {row_id for count in counts for row_id, times in count.items() if times > 1}
    leave("standing twice", sum(max(count[row_id] for count in counts) for row_id in twice))
    others = {row.id: row for row in after if row.id not in twice}
    for old in before:
        if old.id in twice:
            continue
        new = others.pop(old.id, None)
        if new is None:
            leave("measured before only")
        elif old.target != new.target:
            leave("with another right answer")
        elif prompts == "same" and old.prompt_hash != new.prompt_hash:
            leave("asked in other words")
        else:
            pairs.append((old, new))
    leave("measured after only", len(others))
    return pairs, unpaired


def _value(row: ScoredRow) -> float:
    return float(row.correct) if row.value is None else row.value


def _kinds(score: Score, rows: Collection[ScoredRow]) -> set[str]:
    """What the score is of its rows: their ``mean``, that over subjects (``macro``), or neither, as a perplexity."""
    if not rows:
        return {"mean"}
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(_value(row))
    means = {
        "mean": _mean([_value(row) for row in rows]),
        "macro": _mean([_mean(values) for values in groups.values()]),
    }
    return {kind for kind, mean in means.items() if math.isclose(score.value, mean, rel_tol=1e-9, abs_tol=1e-9)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _compared(
    name: str,
    a: Score,
    b: Score,
    pairs: Sequence[tuple[ScoredRow, ScoredRow]],
    unpaired: Mapping[str, int],
    differing: Mapping[str, tuple[Any, Any]],
    kind: str,
) -> Comparison:
    old, new = [_value(x) for x, _ in pairs], [_value(y) for _, y in pairs]
    moves = [after - before for before, after in zip(old, new, strict=True)]
    sign = 1 if a.higher_is_better else -1
    flags = _flags(a, b, pairs, unpaired, differing)
    if kind == "mean":
        before, after = _mean(old), _mean(new)
        low, high, p, method = _tested(old, new)
    elif kind == "macro":
        before, after, low, high, p, method = _macro(pairs)
    else:
        before, after = a.value, b.value
        # Rows weigh unlike each other here: a test of their own values could contradict the two values shown.
        stderr = math.hypot(a.stderr, b.stderr)
        low, high = after - before - statistics.Z95 * stderr, after - before + statistics.Z95 * stderr
        p, method = statistics.normal_p(after - before, stderr), "normal, from the two standard errors"
        flags = (f"{a.metric} is a function of all rows: values are over all rows of each", *flags)
    flips = [
        Flip(
            id=x.id,
            group=x.group,
            before=_value(x),
            after=_value(y),
            target=x.target,
            prediction_before=x.prediction,
            prediction_after=y.prediction,
        )
        for x, y in pairs
        if _value(x) != _value(y)
    ]
    return Comparison(
        name=name,
        metric=a.metric,
        higher_is_better=a.higher_is_better,
        n=len(pairs),
        before=before,
        after=after,
        difference=after - before,
        ci_low=low,
        ci_high=high,
        p_value=p,
        method=method,
        wins=sum(move * sign > 0 for move in moves),
        losses=sum(move * sign < 0 for move in moves),
        ties=sum(not move for move in moves),
        flips=tuple(sorted(flips, key=lambda flip: sign * (flip.after - flip.before))),
        subjects=_subjects(pairs),
        unpaired=dict(unpaired),
        flags=flags,
        protocol_differences=dict(differing),
    )


def _tested(old: Sequence[float], new: Sequence[float]) -> tuple[float, float, float, str]:
    """Interval and p-value of the mean difference, and how they were found."""
    if {*old, *new} <= {0.0, 1.0}:
        counts = dict.fromkeys(((1, 1), (1, 0), (0, 1), (0, 0)), 0)
        for pair in zip(old, new, strict=True):
            counts[int(pair[0]), int(pair[1])] += 1
        low, high = statistics.paired_shares(counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0])
        return low, high, statistics.mcnemar(counts[0, 1], counts[1, 0]), "McNemar's exact test, Newcombe's interval"
    moves = [y - x for x, y in zip(old, new, strict=True)]
    method = "sign-flip permutation test over rows, Student's interval"
    return *statistics.mean_interval(moves, LEAST), statistics.sign_flip(moves), method


def _macro(pairs: Sequence[tuple[ScoredRow, ScoredRow]]) -> tuple[float, float, float, float, float, str]:
    """Both means over subjects, and interval, p-value and method of their difference. Subjects are fixed, rows are
    drawn."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for x, y in pairs:
        groups.setdefault(x.group, []).append((_value(x), _value(y)))
    before = _mean([_mean([x for x, _ in values]) for values in groups.values()])
    after = _mean([_mean([y for _, y in values]) for values in groups.values()])
    if all(len(values) == 1 for values in groups.values()):
        return before, after, *_tested([_value(x) for x, _ in pairs], [_value(y) for _, y in pairs])
    moves = [[y - x for x, y in values] for values in groups.values()]
    squares = [_squares(each) for each in moves]
    pooled = math.fsum(squares) / (len(pairs) - len(groups))
    singles = [each[0] for each in moves if len(each) == 1]
    if len(singles) > 1:
        # Where the larger subjects did not move, how the single rows moved is all that is known of their spread.
        pooled = max(pooled, _squares(singles) / (len(singles) - 1))
    variance = math.fsum(
        square / (len(each) - 1) / len(each) if len(each) > 1 else pooled
        for each, square in zip(moves, squares, strict=True)
    )
    stderr = math.sqrt(variance) / len(groups)
    half = statistics.Z95 * stderr
    # No spread within subjects is no certainty: no paired test finds less than that with so few rows that moved.
    moved = sum(bool(move) for each in moves for move in each)
    least = min(1.0, math.ldexp(2.0, -moved))
    p = max(least, statistics.normal_p(after - before, stderr) if stderr else 0.0) if after != before else 1.0
    method = "mean over subjects: normal, from the paired differences within each subject"
    if singles:
        method += "; of subjects with one row from the pooled variance"
    return before, after, after - before - half, after - before + half, p, method


def _squares(values: Sequence[float]) -> float:
    middle = _mean(values)
    return math.fsum((value - middle) ** 2 for value in values)


def _subjects(pairs: Sequence[tuple[ScoredRow, ScoredRow]]) -> tuple[SubjectChange, ...]:
    by_group: dict[str, list[tuple[float, float]]] = {}
    for x, y in pairs:
        if x.group:
            by_group.setdefault(x.group, []).append((_value(x), _value(y)))
    if len(by_group) < 2:
        return ()
    p_values = {group: _tested([x for x, _ in values], [y for _, y in values])[2] for group, values in by_group.items()}
    adjusted = statistics.holm(p_values)
    changes = [
        SubjectChange(
            name=group,
            n=len(values),
            before=_mean([x for x, _ in values]),
            after=_mean([y for _, y in values]),
            p_value=p_values[group],
            p_adjusted=adjusted[group],
        )
        for group, values in by_group.items()
    ]
    return tuple(sorted(changes, key=lambda change: (-abs(change.difference), change.name)))


def _protocol_differences(a: Score, b: Score) -> dict[str, tuple[Any, Any]]:
    keys = [key for key in {**a.protocol, **b.protocol} if key not in _OUTCOMES]
    return {
        key: (a.protocol.get(key), b.protocol.get(key)) for key in keys if a.protocol.get(key) != b.protocol.get(key)
    }


def _flags(
    a: Score,
    b: Score,
    pairs: Sequence[tuple[ScoredRow, ScoredRow]],
    unpaired: Mapping[str, int],
    differing: Mapping[str, tuple[Any, Any]],
) -> tuple[str, ...]:
    flags = []
    if not (a.comparable and b.comparable):
        flags.append("not comparable with published numbers")
    if unpaired:
        left = ", ".join(f"{count:,} {reason}" for reason, count in unpaired.items())
        flags.append(f"{len(pairs):,} rows are paired; left out: {left}")
    others = sum(x.prompt_hash != y.prompt_hash for x, y in pairs)
    if others:
        flags.append(
            f"{others:,} of {len(pairs):,} rows were asked in other words: ways of asking are compared as well"
        )
    if a.source != b.source:
        flags.append(f"other sources: {a.source} and {b.source}")
    # Equal prompts under an equal protocol are one setup, whether or not one of the two scores names it.
    if a.setup != b.setup and (others or differing or unpaired.get("asked in other words")):
        flags.append(f"other setups: {a.setup or 'the default'} and {b.setup or 'the default'}")
    if differing:
        shown = "; ".join(f"{key} {left!r} and {right!r}" for key, (left, right) in list(differing.items())[:5])
        flags.append(f"measured in other ways: {shown[:400]}")
    cut = [sum(row.truncated for row in rows) for rows in zip(*pairs, strict=True)]
    if any(cut):
        flags.append(f"cut short: {cut[0]:,} rows before and {cut[1]:,} after")
    if a.weights_hash and a.weights_hash == b.weights_hash:
        flags.append("both measured the same weights")
    return tuple(flags)


def compare_runs(
    before: Mapping[str, Score], after: Mapping[str, Score], *, names: tuple[str, str], prompts: str = "same"
) -> RunComparison:
    """Compare every benchmark that two sets of scores share.

    Args:
        before: scores by name.
        after: scores by name.
        names: what the two are called.
        prompts: as in :func:`compare_scores`.

    Raises:
        DataError: if they share no benchmark that can be compared.
        ArtifactError: if rows cannot be read.
    """
    found: dict[str, Comparison] = {}
    left_out = {
        **{name: "measured before only" for name in before if name not in after},
        **{name: "measured after only" for name in after if name not in before},
    }
    shared = [name for name in before if name in after]
    for name in shared:
        try:
            found[name] = compare_scores(before[name], after[name], prompts=prompts, name=name)
        except DataError as error:
            left_out[name] = f"{error.message} {error.found}" + (f"; {error.fix}" if error.fix else "")
    if not found:
        raise DataError(
            "There is nothing to compare.",
            code="not-comparable",
            asked=f"{names[0]} with {names[1]}",
            found="; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "no scores",
            fix="measure the same benchmarks the same way in both",
            details={"left_out": left_out},
        )
    hashes = {(before[name].weights_hash, after[name].weights_hash) for name in found}
    return RunComparison(
        before=names[0],
        after=names[1],
        benchmarks=found,
        p_adjusted=statistics.holm({name: one.p_value for name, one in found.items()}),
        left_out=left_out,
        same_weights=all(left and left == right for left, right in hashes),
    )
