"""From a reference to a data set: what is it, which format has it, and does the step take it."""

from __future__ import annotations

import difflib
import importlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit.data.dataset import Dataset, canonical_converter, empty_error
from tunekit.data.formats import FORMAT_NAMES, FORMATS, Format, by_name, detect, guarded, unsupported
from tunekit.data.objects import object_source
from tunekit.data.readers import SUFFIXES, TEXT_RULES, FileSource, file_kind
from tunekit.data.rows import RawRow, Source, row_error
from tunekit.data.schemas import SCHEMAS, SHAPES, conversion
from tunekit.errors import AmbiguousNameError, DataError, MissingDependencyError, nearest

__all__ = ["canonical_dataset", "find_format", "load_dataset", "looks_like_hub_id"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?::[\w.-]+)?")
_SAMPLE = 20


def load_dataset(
    ref: Any,
    *,
    accepts: Sequence[str] = (),
    limit: int | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    formats: Sequence[Format] = (),
) -> Dataset:
    """Open a data set. The first rows are read to see what they are; the rest is read when asked for.

    Args:
        ref: a path (JSON, JSON Lines, CSV, TSV, Parquet, plain text; all but Parquet also with ``.gz``), a hub id
            ``owner/name`` or ``owner/name:config`` (its ``train`` split, through the ``datasets`` package), a list of
            rows, a generator (its rows are kept), a ``datasets.Dataset``, a pandas DataFrame, or a ``Dataset``.
        accepts: canonical shapes the step takes, best first; empty: any. Data of another shape are converted where
            :data:`tunekit.data.schemas.CONVERSIONS` says how, else refused.
        limit: use the first usable rows only.
        format: name of the format, instead of detection: one of :data:`tunekit.data.FORMAT_NAMES`, or of ``formats``.
        columns: field of the format -> column of the data. In a CSV or TSV file without a header, positions
            (``{"prompt": "1", "completion": "2"}``).
        on_bad_row: ``error``, or ``skip`` to leave bad rows out and list them in ``bad_rows``.
        formats: formats of plugins; detection looks at them only where no format of tunekit's own fits.

    Raises:
        DataError: if it cannot be found or read, has no rows, no known format, or a shape the step does not take; or if
            the formats of several plugins fit.
        AmbiguousNameError: if several plugins provide the short name ``format``.
        MissingDependencyError: if reading it needs a package that is not installed.
    """
    _check_arguments(accepts, limit, columns, on_bad_row)
    wanted = None if format is None else find_format(format, formats)
    if isinstance(ref, Dataset):
        if format is not None or columns:
            raise DataError(
                f"{ref.name} has canonical rows; format= and columns= do not apply to it.",
                code="canonical-data",
                fix="leave them out, or pass what the data set was opened from",
            )
        return canonical_dataset(ref.name, ref.schema, ref, accepts=accepts, limit=limit, on_bad_row=on_bad_row)
    positions = bool(columns) and all(str(column).isdigit() for column in (columns or {}).values())
    rule = None if wanted is None or wanted.provider else str(format).rpartition("/")[2]
    source = _open_ref(ref, rule, positions) if isinstance(ref, str | Path) else object_source(ref)
    head = _head(source)
    form, renamed = _format_of(source, head, accepts, wanted, dict(columns or {}), formats)
    schema, change = _shape(source, form, tuple(accepts))
    own = guarded(form) if form.provider else form.convert
    convert = canonical_converter(_renaming(own, renamed), form.schema, change)
    return Dataset(
        source,
        schema=schema,
        format=form.id if form.provider else source.rule or form.name,
        format_version=form.version,
        native=form.schema,
        convert=convert,
        accepts=accepts,
        limit=limit,
        on_bad_row=on_bad_row,
        columns=columns,
        note=TEXT_RULES.get(source.rule, ""),
    )


def find_format(name: str, formats: Sequence[Format] = ()) -> Format:
    """The format called ``name``: one of tunekit's own, or of ``formats``.

    Raises:
        DataError: if there is none; it names the nearest ones.
        AmbiguousNameError: if several plugins provide it.
    """
    found = by_name(name, formats) if isinstance(name, str) else []
    if len(found) > 1:
        spellings = [form.id for form in found]
        raise AmbiguousNameError(
            f"{len(found)} installed distributions provide the data format {name!r}.",
            asked=f"format={name!r}",
            found=", ".join(f"{form.id} ({form.version})" for form in found),
            fix="write " + " or ".join(f'format="{spelling}"' for spelling in spellings),
            details={"kind": "format", "stage": "", "spellings": spellings},
        )
    if found:
        return found[0]
    short = str(name).rpartition("/")[2]
    same = [form.id for form in (*FORMATS, *formats) if form.name == short]
    known = (*FORMAT_NAMES, *sorted({form.id for form in formats}))
    raise DataError(
        f"There is no data format {name!r}.",
        code="unknown-format",
        asked=f"format={name!r}",
        suggestions=same or _nearest_formats(short, formats),
        fix=f"use one of {', '.join(known)}",
        details={"known": list(known)},
    )


def _nearest_formats(name: str, formats: Sequence[Format]) -> tuple[str, ...]:
    spelling = {form.name: form.id for form in formats} | {own: own for own in FORMAT_NAMES}
    return tuple(spelling[close] for close in nearest(name, spelling))


def canonical_dataset(
    name: str,
    schema: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    accepts: Sequence[str] = (),
    limit: int | None = None,
    on_bad_row: str = "error",
) -> Dataset:
    """A data set over rows that are canonical already, such as those of a ``DatasetSpec``. They are still validated.

    Raises:
        DataError: if there are no rows, or the step does not take the shape.
    """
    _check_arguments(accepts, limit, None, on_bad_row)
    if schema not in SCHEMAS:
        raise DataError(
            f"{name} has the unknown row shape {schema!r}.",
            code="unknown-schema",
            suggestions=nearest(schema, SCHEMAS),
            fix=f"use one of {', '.join(SCHEMAS)}",
        )
    source = object_source(rows, name)
    _head(source)
    target, change = _shape(source, _Canonical(schema), tuple(accepts))
    return Dataset(
        source,
        schema=target,
        format=schema,
        native=schema,
        convert=canonical_converter(None, schema, change),
        accepts=accepts,
        limit=limit,
        on_bad_row=on_bad_row,
    )


class _Canonical:
    """Stands for a format where rows need none."""

    def __init__(self, schema: str) -> None:
        self.name = schema
        self.schema = schema


def looks_like_hub_id(ref: str) -> bool:
    """Whether ``ref`` is spelt as ``owner/name`` and names neither an existing path nor a data file."""
    if not _HUB_ID.fullmatch(ref) or Path(ref).exists() or Path(ref).parts[0] in (".", ".."):
        return False
    suffixes = [suffix.lower() for suffix in Path(ref).suffixes]
    if suffixes and (suffixes[-1] in SUFFIXES or suffixes[-1] == ".gz"):
        return False
    return not Path(Path(ref).parts[0]).is_dir()


def _check_arguments(
    accepts: Sequence[str], limit: int | None, columns: Mapping[str, str] | None, on_bad_row: str
) -> None:
    for schema in accepts:
        if not isinstance(schema, str) or isinstance(accepts, str):
            raise DataError(f"accepts takes a list of row shapes, found {accepts!r}.", code="accepts")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit is {limit!r}; it must be a whole number from 1.", code="limit")
    if columns is not None and not all(isinstance(k, str) and isinstance(v, str) for k, v in columns.items()):
        raise DataError("columns maps field names to column names, both text.", code="columns", found=repr(columns))
    if on_bad_row not in ("error", "skip"):
        raise DataError(f'on_bad_row is {on_bad_row!r}; it must be "error" or "skip".', code="on-bad-row")


# Where the rows are


def _open_ref(ref: str | Path, format: str | None, positions: bool) -> Source:
    text = str(ref)
    path = Path(ref)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):
        exists = False
    if not exists:
        if isinstance(ref, str) and looks_like_hub_id(ref):
            return _hub_source(ref)
        raise _missing(path, text)
    if path.is_dir():
        known = (*SUFFIXES, ".gz")
        files = sorted(item.name for item in path.iterdir() if item.is_file() and item.suffix.lower() in known)
        raise DataError(
            f"{text} is a folder, not a data file.",
            code="folder",
            found=f"data files in it: {', '.join(files[:8]) or 'none'}" + (" ..." if len(files) > 8 else ""),
            fix=f"pass one of them, such as {str(path / files[0])!r}" if files else "pass a file",
            details={"file": text},
        )
    kind = file_kind(path)
    if kind is None:
        raise DataError(
            f"{path.name}: the file name does not say what is in it.",
            code="unknown-file-type",
            asked=text,
            fix=f"name it with one of the endings {', '.join(SUFFIXES)} (each but .parquet also with .gz)",
            details={"file": text},
        )
    if path.suffix.lower() == ".gz" and kind == "parquet":
        raise DataError(
            f"{path.name}: Parquet files are compressed inside.",
            code="unknown-file-type",
            fix="gunzip the file",
            details={"file": text},
        )
    if format in TEXT_RULES and kind != "txt":
        raise DataError(
            f"format={format!r} is a rule for plain text files; {path.name} is a {kind} file.",
            code="format-columns",
            details={"file": text},
        )
    return FileSource(path, kind, rule=format if format in TEXT_RULES else None, header=not positions)


def _missing(path: Path, text: str) -> DataError:
    folder = path.parent
    try:
        there = folder.is_dir()
        names = sorted(item.name for item in folder.iterdir()) if there else []
    except (OSError, ValueError):
        there, names = False, []
    near = tuple(str(folder / name) if str(folder) != "." else name for name in nearest(path.name, names))
    found = "" if there else f"there is no folder {folder}"
    if there and not near:
        found = f"in {folder.resolve()}: {', '.join(names[:8]) or 'nothing'}" + (" ..." if len(names) > 8 else "")
    return DataError(
        f"There is no data file {text}.",
        code="missing-file",
        asked=text,
        found=found,
        suggestions=near,
        fix="" if near else "give the path from the current folder, or an absolute one",
        details={"file": text, "reason": "no such file"},
    )


def _hub_source(ref: str) -> Source:
    name, _, config = ref.partition(":")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingDependencyError(
            f"There is no file {ref}, and reading it from the hub needs the package datasets.",
            asked=ref,
            fix="pip install datasets",
        ) from error
    try:
        data = datasets.load_dataset(name, config or None, split="train")
    except Exception as error:
        # The hub client raises many kinds; each means that the data are not there.
        raise DataError(
            f"There is no file {ref}, and the data set {name} could not be read from the hub.",
            code="hub",
            asked=ref,
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}",
            fix="give the path of a local file, or load the data set yourself and pass the object",
            details={"file": ref},
        ) from error
    return object_source(data, ref)


def _head(source: Source) -> list[RawRow]:
    """The first rows.

    Raises:
        DataError: if there are none.
    """
    head = list(itertools.islice(source.rows(), _SAMPLE))
    if not head:
        raise empty_error(source)
    return head


# What the rows are


def _format_of(
    source: Source,
    head: list[RawRow],
    accepts: Sequence[str],
    wanted: Format | None,
    columns: dict[str, str],
    formats: Sequence[Format],
) -> tuple[Format, dict[str, str]]:
    """The format, and the columns to rename (field -> column)."""
    samples = [row.value for row in head if isinstance(row.value, dict)]
    if not samples:
        first = head[0]
        if first.problem is not None:
            raise row_error(source, first, first.problem)
        raise DataError(
            f"{source.name} row {first.number}: a row must be an object with named fields, found {first.value!r:.60}.",
            code="bad-row",
            details={"file": str(source.path or source.name), "row": first.number, "reason": "no object"},
        )
    names = list(dict.fromkeys(str(name) for sample in samples for name in sample))
    for field, column in columns.items():
        if column not in names:
            raise DataError(
                f"{source.name} has no column {column!r}.",
                code="missing-column",
                asked=f"columns={{{field!r}: {column!r}}}",
                found=f"columns {_listed(names)}",
                suggestions=nearest(column, names),
                details={"file": str(source.path or source.name), "field": column},
            )
    if wanted is not None:
        return _wanted(source, names, wanted, columns), columns
    merged = {**samples[0], **{field: samples[0].get(column) for field, column in columns.items()}}
    known = _fitting(names, merged, columns, FORMATS)
    if not known:
        fitting = _fitting(names, merged, columns, formats)
        return _plugin_format(source, fitting, names, samples[0], accepts, formats), columns
    best = next((form for form in known if form.schema in accepts), None)
    if best is None:
        best = next((form for form in known if conversion(form.schema, tuple(accepts))), known[0])
    return best, columns


def _fitting(
    names: list[str], sample: dict[str, Any], columns: dict[str, str], formats: Sequence[Format]
) -> list[Format]:
    known = detect(list(columns), sample, formats) if columns else []
    if not known:
        taken = set(columns.values())
        known = detect([*columns, *(name for name in names if name not in taken)], sample, formats)
    return known


def _plugin_format(
    source: Source,
    fitting: list[Format],
    names: list[str],
    sample: dict[str, Any],
    accepts: Sequence[str],
    formats: Sequence[Format],
) -> Format:
    """The one plugin format that fits. What a step cannot take does not count, unless nothing else fits.

    Raises:
        DataError: if none fits, or several.
    """
    usable = [form for form in fitting if conversion(form.schema, tuple(accepts))] or fitting
    if len(usable) > 1:
        spellings = sorted(form.id for form in usable)
        raise DataError(
            f"{source.name}: {len(usable)} data formats of plugins fit the columns.",
            code="ambiguous-format",
            asked=f"columns {_listed(names)}",
            found=", ".join(f"{form.id} ({', '.join(form.columns)})" for form in usable),
            fix="write " + " or ".join(f'format="{spelling}"' for spelling in spellings),
            details={"file": str(source.path or source.name), "spellings": spellings},
        )
    if not usable:
        raise _unknown(source, names, sample, accepts, formats)
    return usable[0]


def _wanted(source: Source, names: list[str], form: Format, columns: dict[str, str]) -> Format:
    known = (*form.columns, *form.optional)
    for field in columns:
        if field not in known:
            raise DataError(
                f"The format {form.name} has no field {field!r}.",
                code="columns",
                asked=f"columns={columns!r}",
                found=f"fields {_listed(known)}",
                suggestions=nearest(field, known),
            )
    there = set(names) | set(columns)
    missing = [field for field in form.columns if field not in there]
    if missing:
        raise DataError(
            f"{source.name} does not have the columns of the format {form.name}: {_listed(missing)} missing.",
            code="format-columns",
            asked=f"format={form.id!r}, which needs {_listed(form.columns)}",
            found=f"columns {_listed(names)}",
            suggestions=nearest(missing[0], names),
            fix=f"say which column it is: columns={{{missing[0]!r}: ...}}",
            details={"file": str(source.path or source.name), "field": missing[0]},
        )
    return form


def _unknown(
    source: Source, names: list[str], sample: dict[str, Any], accepts: Sequence[str], formats: Sequence[Format]
) -> DataError:
    wanted = [name for name in accepts if name in SHAPES] or list(SHAPES)
    guess = unsupported(names, sample)
    fitting = [form for form in (*FORMATS, *formats) if conversion(form.schema, tuple(wanted))]
    first = SCHEMAS[wanted[0]]
    example = ", ".join(f"{field!r}: {(nearest(field, names) or ('...',))[0]!r}" for field in first)
    if "without a header" in guess:
        example = ", ".join(f"{field!r}: '{number}'" for number, field in enumerate(first, 1))
    return DataError(
        f"{source.name}: the columns fit no known data format.{' ' + guess if guess else ''}",
        code="unknown-columns",
        found=f"columns {_listed(names)}",
        asked="rows of " + " or ".join(SHAPES[name] for name in wanted),
        suggestions=() if guess else _close_formats(names, formats),
        fix=f"pass columns={{{example}}}, or format= one of {', '.join(form.id for form in fitting)}",
        details={"file": str(source.path or source.name), "columns": names, "accepts": list(accepts)},
    )


def _close_formats(names: Sequence[str], formats: Sequence[Format]) -> tuple[str, ...]:
    """Formats all of whose columns are there up to spelling, as ``alpaca (instruction, output)``."""
    close: list[str] = []
    lowered = [name.lower() for name in names]
    for form in (*FORMATS, *formats):
        if all(difflib.get_close_matches(column, lowered, n=1, cutoff=0.8) for column in form.columns):
            close.append(f"{form.id} ({', '.join(form.columns)})")
    return tuple(close[:3])


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name if len(name) <= 40 else name[:40] + "...") for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _renaming(convert: Callable[[dict[str, Any]], dict[str, Any]], columns: dict[str, str]) -> Any:
    if not columns:
        return convert

    def run(row: dict[str, Any]) -> dict[str, Any]:
        taken = set(columns.values())
        renamed = {name: value for name, value in row.items() if name not in taken}
        renamed |= {field: row[column] for field, column in columns.items() if column in row}
        return convert(renamed)

    return run


# Whether the step takes them


def _shape(
    source: Source, form: Format | _Canonical, accepts: tuple[str, ...]
) -> tuple[str, Callable[[dict[str, Any]], dict[str, Any]] | None]:
    found = conversion(form.schema, accepts)
    if found is not None:
        return found
    hint = f"use data of the shape {SHAPES.get(accepts[0], accepts[0])}"
    if form.schema in ("preference", "feedback") and {"prompt_completion", "conversation"} & set(accepts):
        hint += "; to train on some of the answers only, select them and pass rows with prompt and completion"
    raise DataError(
        f"{source.name} holds {form.schema} rows ({form.name}), which this step does not take.",
        code="wrong-shape",
        asked="rows of " + " or ".join(SHAPES.get(name, name) for name in accepts),
        found=SHAPES.get(form.schema, form.schema),
        fix=hint,
        details={"file": str(source.path or source.name), "schema": form.schema, "accepts": list(accepts)},
    )
