"""From a reference to a data set: what is it, which format has it, and does the step take it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit._secrets import refuse_passwords
from tunekit.data.dataset import Dataset, canonical_converter, empty_error
from tunekit.data.detection import Reading, choose, renaming, wrong_shape
from tunekit.data.folders import FilesSource, folder_files, glob_files, has_magic, open_files
from tunekit.data.formats import FORMAT_NAMES, FORMATS, Format, by_name, guarded
from tunekit.data.hub import hub_ref, hub_source, looks_like_hub_id, saved_source
from tunekit.data.mixture import is_mix, open_mix
from tunekit.data.objects import object_source
from tunekit.data.prompts import carrying
from tunekit.data.readers import SUFFIXES, TEXT_RULES, FileSource, file_kind
from tunekit.data.rows import RawRow, RowProblem, Source, row_error
from tunekit.data.schemas import SCHEMAS, Change, conversion
from tunekit.errors import AmbiguousNameError, DataError, nearest

__all__ = ["canonical_dataset", "find_format", "load_dataset", "looks_like_hub_id"]

_SAMPLE = 20
_SAMPLE_CHARS = 16 << 20


def load_dataset(
    ref: Any,
    *,
    accepts: Sequence[str] = (),
    limit: int | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    streaming: bool = False,
    formats: Sequence[Format] = (),
) -> Dataset:
    """Open a data set. The first rows are read to see what they are; the rest is read when asked for.

    Args:
        ref: a path (JSON, JSON Lines, CSV, TSV, Parquet, CoNLL, plain text; all but Parquet also with ``.gz``), a
            folder of such files or a pattern (``corpus/*.jsonl.gz``), a hub id ``owner/name``, ``owner/name:config`` or
            ``owner/name:config@split`` (default: its ``train`` split, through the ``datasets`` package), a list of
            rows, a generator (its rows are kept), a function that makes one (nothing is kept), a ``datasets.Dataset``
            or ``IterableDataset``, a pandas DataFrame, a ``Dataset``, or a mixture (:func:`tunekit.data.mix`).
        accepts: canonical shapes the step takes, best first; empty: any. Data of another shape are converted where
            :data:`tunekit.data.schemas.CONVERSIONS` says how, else refused.
        limit: use the first usable rows only.
        format: name of the format, instead of detection: one of :data:`tunekit.data.FORMAT_NAMES`, or of ``formats``.
        columns: field of the format -> column of the data. In a CSV or TSV file without a header, positions
            (``{"prompt": "1", "completion": "2"}``). Column names say that the first line is a header.
        on_bad_row: ``error``, or ``skip`` to leave bad rows out and list them in ``bad_rows``.
        streaming: for a hub id: read rows over the network as they are needed, in place of downloading them.
        formats: formats of plugins; detection looks at them only where no format of tunekit's own fits.

    Raises:
        DataError: if it cannot be found or read, has no rows, no known format, or a shape the step does not take; or if
            the formats of several plugins fit.
        AmbiguousNameError: if several plugins provide the short name ``format``.
        MissingDependencyError: if reading it needs a package that is not installed.
    """
    refuse_passwords({"data": ref})
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
    if is_mix(ref):

        def open_part(part: Any, **options: Any) -> Dataset:
            return load_dataset(part, streaming=streaming, formats=formats, **options)

        return open_mix(
            ref, open_part, accepts=accepts, limit=limit, format=format, columns=columns, on_bad_row=on_bad_row
        )
    rule = None if wanted is None or wanted.provider else str(format).rpartition("/")[2]
    source = _open(ref, rule, _header(columns), streaming)
    if isinstance(source, FilesSource):
        source.check_tables()
    head = _head(source, on_bad_row)
    reading = _reading(source, head, accepts, wanted, dict(columns or {}), formats)
    form = reading.form
    if isinstance(source, FilesSource):
        source.check_needed(reading.columns.get(field, field) for field in form.columns)
    schema, change = _shape(source, form, tuple(accepts))
    own = guarded(form) if form.provider else form.convert
    convert = canonical_converter(renaming(own, reading.columns), form.schema, change)
    if schema == "prompt":
        convert = carrying(convert, form, reading.columns)
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
        columns=reading.columns,
        note="; ".join(filter(None, (_note(source), reading.note(columns or {})))),
        expands=not form.provider and _expands(convert, head),
    )


def _header(columns: Mapping[str, str] | None) -> str | None:
    """What ``columns`` says of the header: positions, names, or nothing."""
    if not columns:
        return None
    return "positions" if all(str(column).isdigit() for column in columns.values()) else "names"


def _note(source: Source) -> str:
    notes = [TEXT_RULES.get(source.rule, "")]
    if isinstance(source, FilesSource):
        notes.append(f"{len(source.files)} files")
        if source.others:
            shown = ", ".join(source.others[:3]) + (" ..." if len(source.others) > 3 else "")
            notes.append(f"not read: {shown}")
    if isinstance(source, FileSource | FilesSource) and source.kind in ("csv", "tsv") and not source.header:
        notes.append("no header")
    return ", ".join(filter(None, notes))


def _expands(convert: Callable[[dict[str, Any]], Any], head: Sequence[RawRow]) -> bool:
    """Whether one of the first rows gives several."""
    for raw in head:
        if isinstance(raw.value, dict):
            try:
                if isinstance(convert(raw.value), list):
                    return True
            except RowProblem:
                continue
    return False


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


def _open(ref: Any, rule: str | None, header: str | None, streaming: bool) -> Source:
    if isinstance(ref, Mapping) and "hub" in ref:
        return hub_source(hub_ref(ref, streaming=streaming))
    if not isinstance(ref, str | Path):
        return object_source(ref)
    text = str(ref)
    if not text.strip():
        raise DataError(
            "The name of the data is empty.",
            code="no-dataset",
            asked=f"data={text!r}",
            fix='give a path, a hub id or rows; the current folder is "."',
        )
    path = Path(ref)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):
        exists = False
    if not exists:
        if isinstance(ref, str) and looks_like_hub_id(ref):  # before patterns: owner/name@train[:100]
            return hub_source(hub_ref(ref, streaming=streaming))
        if has_magic(text):
            files = glob_files(text)
            return _checked(open_files(text, _fixed_part(text), files, rule=_text_only(rule), header=header), rule)
        raise _missing(path, text)
    if path.is_dir():
        saved = saved_source(path)
        if saved is not None:
            return saved
        name = text.rstrip("/") + "/"
        files, others = folder_files(path)
        return _checked(open_files(name, path, files, rule=_text_only(rule), header=header, others=others), rule)
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
    return _checked(FileSource(path, kind, rule=_text_only(rule), header=header), rule)


def _text_only(rule: str | None) -> str | None:
    return rule if rule in TEXT_RULES else None


def _checked(source: FileSource | FilesSource, rule: str | None) -> Source:
    if rule in TEXT_RULES and source.kind != "txt":
        raise DataError(
            f"format={rule!r} is a rule for plain text files; {source.name} is a {source.kind} file.",
            code="format-columns",
            details={"file": str(source.path)},
        )
    return source


def _fixed_part(pattern: str) -> Path:
    """The folder that a pattern starts in."""
    parts = Path(pattern).expanduser().parts
    fixed = list(itertools.takewhile(lambda part: not has_magic(part), parts[:-1]))
    return Path(*fixed) if fixed else Path()


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


def _head(source: Source, on_bad_row: str = "error") -> list[RawRow]:
    """The first rows, no further than to the one that ends every pass; what follows that may be long.

    Raises:
        DataError: if there are none.
    """
    head: list[RawRow] = []
    held = 0
    for row in itertools.islice(source.rows(), _SAMPLE):
        head.append(row)
        if isinstance(row.value, dict):
            held += sum(len(value) for value in row.value.values() if isinstance(value, str))
        if held > _SAMPLE_CHARS or (row.problem is not None and on_bad_row == "error"):
            break
    if not head:
        raise empty_error(source)
    return head


# What the rows are


def _reading(
    source: Source,
    head: list[RawRow],
    accepts: Sequence[str],
    wanted: Format | None,
    columns: Mapping[str, str],
    formats: Sequence[Format],
) -> Reading:
    """The format and its columns, seen from the first rows."""
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
    try:
        return choose(source, samples, accepts=accepts, wanted=wanted, given=columns, formats=formats)
    except DataError as error:
        if isinstance(source, FileSource | FilesSource) and source.header and not source.sure_header:
            error.fix += (
                '; if the first line is a row and no header, name the columns by position: columns={"text": "1"}'
            )
        raise


# Whether the step takes them


def _shape(source: Source, form: Format | _Canonical, accepts: tuple[str, ...]) -> tuple[str, Change | None]:
    found = conversion(form.schema, accepts)
    if found is not None:
        return found
    raise wrong_shape(source, form.schema, form.name, accepts)
