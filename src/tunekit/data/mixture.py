"""Mixtures: rows of several data sets in given shares, in an order that the seed settles.

A mixture is plain data, so it can stand in a plan file::

    {"mix": [{"data": "a.jsonl", "weight": 0.7}, {"data": "b.jsonl", "weight": 0.3}], "seed": 0, "stop": "first"}

Shares are kept at any place to within a row or two, not only on average; within that the seed settles the order.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tunekit._secrets import refuse_passwords
from tunekit.data.dataset import Dataset
from tunekit.data.hub import looks_like_hub_id
from tunekit.data.objects import Replay
from tunekit.data.rows import RawRow
from tunekit.data.schemas import SCHEMAS, SHAPES, conversion
from tunekit.errors import DataError, TunekitError, nearest
from tunekit.plan import MAX_SEED, digest

__all__ = ["MixSource", "is_mix", "mix", "mix_parts", "open_mix", "without_hub"]

STOPS = ("first", "all")
_KEYS = ("mix", "seed", "stop", "rows")
_PART_KEYS = ("data", "weight", "name", "format", "columns", "limit")

Pair = tuple[RawRow, dict[str, Any]]
"""A row as it stands in its source, and as a canonical row."""

OpenPart = Callable[..., Dataset]
"""``open_part(ref, accepts=, limit=, format=, columns=, on_bad_row=)``."""


def mix(
    parts: Mapping[str, Any] | Iterable[Any], *, seed: int = 0, stop: str = "first", rows: int | None = None
) -> dict[str, Any]:
    """A mixture of data sets, to be passed as ``data=`` or to ``load_dataset``. Nothing is opened yet.

    Args:
        parts: data set to weight: ``{"a.jsonl": 0.7, "b.jsonl": 0.3}``. Keys are whatever ``data=`` takes as text:
            paths, folders, patterns, hub ids, short names. A weight may be a mapping ``{"weight": 0.3, "format":
            "alpaca", "columns": {...}, "limit": 1000}``; with ``"data"`` in it the key is only a name, and the data may
            be an object in memory. A list of ``(data, weight)`` pairs or such mappings does as well. Weights are
            relative.
        seed: settles the order.
        stop: ``first``: the mixture ends where the first part has no more rows, so none comes twice. ``all``: parts
            that end begin again until every part was read to its end; of a part that does not know its end, such as a
            function, ``rows`` or its ``limit`` must then say it.
        rows: end after this many rows; with ``stop="all"`` exactly so many, however often parts begin again.

    Returns:
        Plain data: JSON types, and the objects in memory that were passed.

    Raises:
        DataError: if there are no parts, a weight is not above 0, or an argument is not one of those above.
    """
    refuse_passwords({"mix": parts})
    made: dict[str, Any] = {"mix": _listed(parts), "seed": seed, "stop": stop}
    if rows is not None:
        made["rows"] = rows
    _checked(made)
    return made


def is_mix(ref: Any) -> bool:
    """Whether ``ref`` is what :func:`mix` makes."""
    return isinstance(ref, Mapping) and "mix" in ref


def without_hub(ref: Any, is_name: Callable[[str], Any]) -> Any:
    """What can be opened of a data reference without the network: of a mixture the parts that are not on the hub.

    Args:
        ref: what ``data=`` takes.
        is_name: whether a text is the short name of a data set.

    Returns:
        A reference of the same kind, or None if nothing is left.
    """
    if isinstance(ref, str):
        return None if looks_like_hub_id(ref) and not is_name(ref) else ref
    if not is_mix(ref):
        return None if isinstance(ref, Mapping) and "hub" in ref else ref
    parts = [part for part in mix_parts(ref) if without_hub(part["data"], is_name) is not None]
    return {**ref, "mix": parts} if parts else None


def mix_parts(ref: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a mixture, each ``{"data", "weight", "name"?, "format"?, "columns"?, "limit"?}``.

    Raises:
        DataError: if it is malformed.
    """
    parts: list[dict[str, Any]] = _checked(ref)["mix"]
    return parts


def _listed(parts: Any) -> list[dict[str, Any]]:
    if isinstance(parts, Mapping):
        return [_named(key, value) for key, value in parts.items()]
    if isinstance(parts, str | bytes) or not isinstance(parts, Iterable):
        raise _wrong(f"is made of parts, not of {parts!r:.80}")
    made: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Mapping):
            made.append(dict(part))
        elif isinstance(part, list | tuple) and len(part) == 2:
            made.append({"data": part[0], "weight": part[1]})
        else:
            raise _wrong(f"has the part {part!r:.80}, which is no (data, weight) pair and no mapping")
    return made


def _named(key: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {"data": str(key) if isinstance(key, Path) else key, "weight": value}
    part = dict(value)
    if "data" in part:
        part.setdefault("name", str(key))
    else:
        part = {"data": str(key), **part}
    return part


def _checked(ref: Mapping[str, Any]) -> dict[str, Any]:
    unknown = next((key for key in ref if key not in _KEYS), None)
    if unknown is not None:
        raise _wrong(f"has no {unknown!r}", suggestions=nearest(str(unknown), _KEYS), fix=f"use {', '.join(_KEYS)}")
    parts = _listed(ref["mix"])
    if not parts:
        raise _wrong("has no parts")
    for part in parts:
        wrong = next((key for key in part if key not in _PART_KEYS), None)
        label = _label(part)
        if wrong is not None:
            close = nearest(str(wrong), _PART_KEYS)
            raise _wrong(f"has no {wrong!r} for its part {label}", suggestions=close, fix=", ".join(_PART_KEYS))
        if part.get("data") is None:
            raise _wrong(f"has a part without data: {part!r:.80}")
        weight = part.setdefault("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise _wrong(f"gives {label} the weight {weight!r}; a weight is a number above 0")
    seed, stop, rows = ref.get("seed", 0), ref.get("stop", "first"), ref.get("rows")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise _wrong(f"has the seed {seed!r}; a seed is a whole number from 0 to {MAX_SEED}")
    if stop not in STOPS:
        raise _wrong(f'has stop={stop!r}; it must be "first" or "all"')
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise _wrong(f"has rows={rows!r}; it must be a whole number from 1")
    return {"mix": parts, "seed": seed, "stop": stop, "rows": rows}


def _wrong(reason: str, *, suggestions: Sequence[str] = (), fix: str = "") -> DataError:
    return DataError(
        f"A mixture {reason}.",
        code="mix",
        suggestions=suggestions,
        fix=fix or 'mix({"a.jsonl": 0.7, "b.jsonl": 0.3}, seed=0, stop="first")',
    )


def _label(part: Mapping[str, Any]) -> str:
    data = part.get("data")
    kind = data.kind if isinstance(data, Replay) else type(data).__name__
    if isinstance(data, str) and data.startswith("object:"):
        kind, data = data.removeprefix("object:").rpartition("-")[0], None  # as a plan refers to what is in memory
    return str(part.get("name") or (data if isinstance(data, str | Path) else kind))


# Opening


def open_mix(
    ref: Mapping[str, Any],
    open_part: OpenPart,
    *,
    accepts: Sequence[str] = (),
    limit: int | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
) -> Dataset:
    """Open every part, and bring their rows to one shape.

    The shape is the first of ``accepts`` that every part can take without losing anything, else the first that every
    part can take.

    Args:
        ref: what :func:`mix` makes.
        open_part: opens one part, as ``load_dataset`` does.
        accepts: canonical shapes the step takes, best first; empty: any.
        limit: use the first rows of the mixture only.
        format: for parts that name none themselves.
        columns: for parts that name none themselves.
        on_bad_row: for every part.

    Raises:
        DataError: as ``load_dataset`` does, naming the part; or if the parts cannot take one shape.
    """
    facts = _checked(ref)
    parts: list[dict[str, Any]] = facts["mix"]
    for part in parts:
        if isinstance(part["data"], Iterator):
            part["data"] = Replay(part["data"])  # it may be opened a second time, for another shape

    def opened(shapes: Sequence[str]) -> list[Dataset]:
        return [
            _in_part(
                part,
                lambda part=part: open_part(  # type: ignore[misc]
                    part["data"],
                    accepts=tuple(shapes),
                    limit=part.get("limit"),
                    format=part.get("format", format),
                    columns=part.get("columns", columns),
                    on_bad_row=on_bad_row,
                ),
            )
            for part in parts
        ]

    datasets = opened(accepts)
    schema = _common(datasets, parts, tuple(accepts))
    if any(data.schema != schema for data in datasets):
        datasets = opened((schema,))
    if facts["stop"] == "all" and facts["rows"] is None and limit is None:
        for data, part in zip(datasets, parts, strict=True):
            finite = data.limit is not None or data.known_size() or getattr(data._raw, "countable", False)
            if not finite:
                raise _wrong(
                    f'has stop="all" and a part that does not know its end: {_label(part)}',
                    fix='say how many rows to use, mix(..., rows=10_000) or "limit" for that part, or use stop="first"',
                )
    source = MixSource(
        datasets,
        [_label(part) for part in parts],
        [float(part["weight"]) for part in parts],
        seed=facts["seed"],
        stop=facts["stop"],
        rows=facts["rows"],
    )
    made = Dataset(
        source,
        schema=schema,
        format="mix",
        native=schema,
        convert=_as_it_is,
        accepts=accepts,
        limit=limit,
        on_bad_row=on_bad_row,
    )
    made.columns = dict(columns or {})
    return made


def _as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _in_part(part: Mapping[str, Any], work: Callable[[], Dataset]) -> Dataset:
    try:
        return work()
    except TunekitError as error:
        raise _of_part(error, _label(part)) from error


def _of_part(error: TunekitError, label: str) -> TunekitError:
    made = type(error)(f"Part {label} of the mixture: {error.message}", **error.fields())
    made.details.setdefault("part", label)
    return made


_LOSSY = {("conversation", "prompt_completion"), ("prompt_completion", "text"), ("conversation", "text")}
"""Changes of shape that leave something out: answers before the last one, or whose words they are."""


def _common(datasets: Sequence[Dataset], parts: Sequence[Mapping[str, Any]], accepts: tuple[str, ...]) -> str:
    natives = [data.native for data in datasets]
    # Anything has a prompt in it, but only who asks for prompts means them.
    wanted = accepts or (*dict.fromkeys(natives), *(shape for shape in SCHEMAS if shape != "prompt"))
    able = [shape for shape in wanted if all(conversion(native, (shape,)) for native in natives)]
    if able:
        return min(able, key=lambda shape: sum((native, shape) in _LOSSY for native in natives))
    said = "; ".join(
        f"{_label(part)}: {SHAPES.get(native, native)}" for part, native in zip(parts, natives, strict=True)
    )
    raise DataError(
        "The parts of the mixture hold rows of different shapes.",
        code="mixed-shapes",
        found=said,
        fix="mix data of one shape, or give the part that differs a format= that reads it otherwise",
        details={"schemas": natives},
    )


# Reading


class MixSource:
    """Rows of several data sets as one source.

    Args:
        datasets: the parts, all of one shape.
        names: for people.
        weights: relative shares, each above 0.
        seed: settles the order.
        stop: ``first`` or ``all``.
        rows: most rows, or None.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        names: Sequence[str],
        weights: Sequence[float],
        *,
        seed: int = 0,
        stop: str = "first",
        rows: int | None = None,
    ) -> None:
        self.name = "mix"
        self.path: Path | None = None
        self.rule = ""
        total = math.fsum(weights)
        self._datasets = tuple(datasets)
        self._names = tuple(names)
        self._shares = [weight / total for weight in weights]
        self._seed = seed
        self._stop = stop
        self._rows = rows
        self._used: tuple[list[int], list[int]] | None = None
        self.countable = all(data.source is not None or data.total() is not None for data in datasets)

    def rows(self) -> Iterator[RawRow]:
        """The rows from the first on; numbered as rows of the mixture."""
        passes = [0] * len(self._datasets)
        used = [0] * len(self._datasets)
        open_parts = [iter(data.read()) for data in self._datasets]
        try:
            yield from self._mixed(open_parts, used, passes)
        finally:
            # A look at the first rows must not hide what a longer pass has used.
            if self._used is None or sum(used) >= sum(self._used[0]):
                self._used = (used, passes)

    def _mixed(self, open_parts: list[Iterator[Pair]], used: list[int], passes: list[int]) -> Iterator[RawRow]:
        # One row of each part is read ahead, so that a part is known to end with its last row and not at the next draw.
        ahead: list[Pair | None] = [None] * len(used)
        whole = [False] * len(used)
        for number, index in enumerate(islice(self._order(), self._rows), 1):
            if ahead[index] is None:
                if passes[index]:
                    open_parts[index] = iter(self._datasets[index].read())
                ahead[index] = self._next(index, open_parts)
                passes[index] += 1
            raw, row = ahead[index] or (RawRow(0), None)
            yield RawRow(number, row, origin=(index, *(raw.origin or (raw.number,))))
            used[index] += 1  # a row that was only looked at, to see whether there are more, is not used
            ahead[index] = self._next(index, open_parts)
            whole[index] = whole[index] or ahead[index] is None
            if ahead[index] is None and (self._stop == "first" or (all(whole) and self._rows is None)):
                break

    def _next(self, index: int, open_parts: list[Iterator[Pair]]) -> Pair | None:
        try:
            return next(open_parts[index], None)
        except TunekitError as error:
            raise _of_part(error, self._names[index]) from error

    def _order(self) -> Iterator[int]:
        """Which part the next row comes from, without end.

        Row k of a part with the share w is due at (k + u) / w, with u in [0, 1) from the seed. So after n rows a part
        has given n * w of them to within a row or two, whatever n is.
        """
        generator = random.Random(self._seed)
        due = [(generator.random() / share, index, 0) for index, share in enumerate(self._shares)]
        heapq.heapify(due)
        while True:
            _, index, row = due[0]
            yield index
            heapq.heapreplace(due, ((row + 1 + generator.random()) / self._shares[index], index, row + 1))

    def content_hash(self) -> str | None:
        """SHA-256 (hex) over the content of every part and how they are mixed."""
        return digest(
            {
                "parts": [data.fingerprint() for data in self._datasets],
                "shares": self._shares,
                "seed": self._seed,
                "stop": self._stop,
                "rows": self._rows,
                "order": 1,
            }
        )

    def length(self) -> int | None:
        """None: how long the parts last shows when they are read."""
        return None

    def size(self) -> int | None:
        """Bytes of all parts that are files, unpacked."""
        sizes = [data.size_bytes() for data in self._datasets]
        return sum(sizes) or None

    def facts(self) -> list[dict[str, Any]]:
        """What is known of each part, as JSON types; see :attr:`tunekit.data.Dataset.parts`."""
        made: list[dict[str, Any]] = []
        for index, data in enumerate(self._datasets):
            fact: dict[str, Any] = {
                "name": self._names[index],
                "weight": self._shares[index],
                "format": data.format,
                "schema": data.schema,
                "source": str(data.source) if data.source else None,
                "bad_rows": len(data.skipped),
            }
            if self._used is not None:
                fact |= {"rows": self._used[0][index], "passes": self._used[1][index]}
            made.append(fact)
        return made

    def skipped(self) -> list[tuple[int, str]]:
        """(row number in its part, part and reason) of the bad rows that the parts have left out so far."""
        return [
            (number, f"{name}: {reason}")
            for name, data in zip(self._names, self._datasets, strict=True)
            for number, reason in data.skipped
        ]

    def describe(self, rows: int | None) -> str:
        """Parts for people: their shares, and once they were read their rows."""
        said: list[str] = []
        short = [Path(name).name for name in self._names]
        names = short if len(set(short)) == len(short) and all(short) else self._names
        for name, fact in zip(names, self.facts(), strict=True):
            text = f"{fact['weight']:.0%} {name} ({fact['format']}"
            if rows is not None and "rows" in fact:
                text += f", {fact['rows']:,} row{'s' * (fact['rows'] != 1)}"
                text += f" in {fact['passes']} passes" if fact["passes"] > 1 else ""
            if fact["bad_rows"]:
                text += f", {fact['bad_rows']:,} bad left out"
            said.append(text + ")")
        return " + ".join(said)
