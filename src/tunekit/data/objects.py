"""Things in memory as rows: lists, generators, ``datasets`` and pandas objects. None of those libraries is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from tunekit._secrets import masked
from tunekit.data.rows import RawRow, RowProblem, kind_of
from tunekit.errors import DataError

__all__ = ["MemorySource", "Replay", "class_name", "double_columns", "library_of", "object_source", "plain"]


def library_of(value: Any) -> str:
    """Top-level package of the value's class, such as ``datasets``."""
    return type(value).__module__.partition(".")[0]


def plain(value: Any) -> Any:
    """JSON types out of frozen plan data, numpy scalars and arrays, and pandas' missing values."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    library = library_of(value)
    if library == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist())
    if library == "pandas" and type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value


class Replay:
    """A one-pass iterator that can be read again: what was taken is kept."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.kind = type(iterator).__name__
        self._iterator = iterator
        self._kept: list[Any] = []
        self._lock = threading.Lock()
        self._ended = False
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        position = 0
        while True:
            with self._lock:
                while position >= len(self._kept) and not self._ended:
                    if self._error is not None:
                        raise self._error
                    try:
                        self._kept.append(next(self._iterator))
                    except StopIteration:
                        self._ended = True
                    except Exception as error:
                        # The generator is over after this; a second pass must not look complete.
                        self._error = error
                        raise
                if position >= len(self._kept):
                    return
                value = self._kept[position]
            position += 1
            yield value


class _Made:
    """What a function gives, asked anew on every pass: nothing is kept."""

    def __init__(self, function: Callable[[], Iterable[Any]], name: str) -> None:
        self._function = function
        self._name = name

    def __iter__(self) -> Iterator[Any]:
        try:
            made = self._function()
        except TypeError as error:
            raise _no_rows_function(self._name, f"{type(error).__name__}: {error}") from error
        if not isinstance(made, Iterable) or isinstance(made, str | bytes | Mapping):
            raise _no_rows_function(self._name, f"it gave {kind_of(made)}")
        return iter(made)


def _no_rows_function(name: str, found: str) -> DataError:
    return DataError(
        f"The function {name} gives no rows.",
        code="no-dataset",
        found=found,
        fix="pass a function without arguments that returns an iterator over rows, made anew on every call",
    )


class MemorySource:
    """Rows that need no file. ``values`` is iterated anew on every pass."""

    def __init__(self, name: str, values: Iterable[Any]) -> None:
        self.name = name
        self.path: Path | None = None
        self.rule = ""
        self._values = values

    def rows(self) -> Iterator[RawRow]:
        """The rows from the first on."""
        for number, value in enumerate(self._values, 1):
            if isinstance(value, Mapping):
                yield RawRow(number, plain(value))
            else:
                yield RawRow(number, problem=RowProblem("", f"is {kind_of(value)}, not a row with named fields"))

    def content_hash(self) -> str | None:
        """None: the rows themselves are hashed."""
        return None

    def length(self) -> int | None:
        """Number of rows if the values know it."""
        return len(self._values) if isinstance(self._values, Sized) else None

    def size(self) -> int | None:
        """None: they are in memory, or come from elsewhere."""
        return None


class _Frame:
    """Rows of a pandas DataFrame, without a copy of the whole."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        double_columns([str(name) for name in frame.columns], "DataFrame")

    def __len__(self) -> int:
        return len(self._frame)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        names = [str(name) for name in self._frame.columns]
        step = 4096
        for start in range(0, len(self._frame), step):
            part = self._frame.iloc[start : start + step]
            columns = [part.iloc[:, position].tolist() for position in range(len(names))]
            for values in zip(*columns, strict=True):
                yield dict(zip(names, values, strict=True))


def double_columns(names: Sequence[str], where: str) -> None:
    """Refuse columns of one name, of which a row could have only one.

    Raises:
        DataError: naming the column.
    """
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise DataError(
            f"{where} has {names.count(double)} columns {double!r}.",
            code="double-column",
            found=f"columns {', '.join(map(repr, names[:12]))}",
            fix="rename or drop all but one of them",
            details={"file": where, "field": double},
        )


def object_source(value: Any, name: str = "") -> MemorySource:
    """A source over something in memory, called ``name`` or after its type.

    Raises:
        DataError: for a thing that holds no rows.
    """
    library = library_of(value)
    kind = type(value).__name__
    if library == "pandas" and kind == "DataFrame":
        return MemorySource(name or "DataFrame", _Frame(value))
    if library == "datasets" and kind.endswith("DatasetDict"):
        splits = ", ".join(map(str, value))
        raise DataError(
            f"A {kind} holds several data sets.",
            code="dataset-splits",
            found=f"splits {splits}",
            fix='pass one of them, such as data["train"]',
        )
    if isinstance(value, list | tuple):
        return MemorySource(name or "list", value)
    if isinstance(value, Iterator):
        return MemorySource(name or kind, Replay(value))
    if isinstance(value, Replay):
        return MemorySource(name or value.kind, value)
    if callable(value) and not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        return MemorySource(
            name or getattr(value, "__name__", kind), _Made(value, name or getattr(value, "__name__", kind))
        )
    if isinstance(value, Mapping | str | bytes) or not (hasattr(value, "__iter__") or hasattr(value, "__getitem__")):
        raise DataError(
            f"{kind} is no data set.",
            code="no-dataset",
            asked=masked(repr(value))[:80],
            fix="pass a path, a list of rows such as [{'prompt': ..., 'completion': ...}], a generator or a function "
            "that makes one, a datasets.Dataset or a pandas DataFrame",
        )
    if library == "datasets":
        names = class_names(value)
        named = (_SizedNamed if isinstance(value, Sized) else _Named)(value, names) if names else value
        return MemorySource(name or f"datasets.{kind}", named)
    return MemorySource(name or kind, value)


def class_names(value: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, where a ``datasets`` object says what its numbers mean, alone or in lists."""
    found: dict[str, list[str]] = {}
    for column, feature in dict(getattr(value, "features", None) or {}).items():
        inner = getattr(feature, "feature", feature)
        names = getattr(inner, "names", None)
        if type(inner).__name__ == "ClassLabel" and isinstance(names, list):
            found[str(column)] = [str(name) for name in names]
    return found


class _Named:
    """A ``datasets`` object whose class numbers are given by their names. Unknown numbers (-1: no label) stay."""

    def __init__(self, data: Any, names: Mapping[str, list[str]]) -> None:
        self._data = data
        self._names = names

    def __iter__(self) -> Iterator[Any]:
        for row in self._data:
            yield {key: class_name(item, self._names[key]) if key in self._names else item for key, item in row.items()}


class _SizedNamed(_Named):
    def __len__(self) -> int:
        return len(self._data)


def class_name(value: Any, names: list[str]) -> Any:
    """The name of a class number, or of each in a list; what is none stays."""
    if isinstance(value, list):
        return [class_name(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
