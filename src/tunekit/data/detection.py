"""Which format data are in: seen from the columns and values of sample rows, and from what the step takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunekit.data.formats import FORMATS, Format
from tunekit.data.formats_base import NO, YES, Converted, Row
from tunekit.data.positions import fields_by_kind, positional
from tunekit.data.rows import Source
from tunekit.data.schemas import SCHEMAS, SHAPES, conversion
from tunekit.errors import DataError, nearest

__all__ = ["Reading", "choose", "detect", "renaming", "wrong_shape"]


_TELLING = ("rating", "score", "scores", "reward", "feedback", "label", "rank", "stars", "quality", "upvotes",
            "downvotes", "likes", "dislikes", "reactions", "system", "system_prompt", "input", "context",
            "history")  # fmt: skip
"""Columns that judge a row or belong to its question; where they are not used, the description of the data says so."""


_ON_DEMAND = ("prompt", "rated")
"""Shapes that are read from columns which mostly mean something else."""


@dataclass(frozen=True)
class Reading:
    """One way to read the rows."""

    form: Format
    columns: Mapping[str, str]
    """Field of the format -> column of the data, where they differ or the user said so."""
    level: int
    """1: possible, 2: the data look like it."""
    rivals: str = ""
    """Readings of one name here exclude each other."""
    unused: tuple[str, ...] = ()
    """Columns of :data:`_TELLING` that this reading does not use."""

    def note(self, given: Mapping[str, str]) -> str:
        """What of this reading was not said by the user, for the description of the data."""
        found = [
            f"{field}: {'column ' if column.isdigit() else ''}{column}"
            for field, column in self.columns.items()
            if field not in given
        ]
        unused = f"not used: {', '.join(self.unused)}" if self.unused else ""
        return "; ".join(filter(None, (", ".join(found), self.form.note, unused)))

    def spelling(self) -> str:
        """The arguments that ask for this reading."""
        text = f'format="{self.form.id}"'
        return text + (f", columns={dict(self.columns)!r}" if self.columns else "")


@dataclass(frozen=True)
class _Clash:
    """A format that would fit if it were clear which column is which."""

    form: Format
    field: str
    columns: tuple[str, ...]


def detect(
    samples: Sequence[Row], formats: Sequence[Format] = FORMATS, given: Mapping[str, str] | None = None
) -> list[Reading]:
    """The readings of sample rows, in the order of ``formats``.

    Args:
        samples: some rows as they stand in the data.
        formats: the formats to look at.
        given: field -> column, as the user named them.
    """
    return [found for found in _looked_at(samples, formats, given or {}) if isinstance(found, Reading)]


def choose(
    source: Source,
    samples: Sequence[Row],
    *,
    accepts: Sequence[str],
    wanted: Format | None,
    given: Mapping[str, str],
    formats: Sequence[Format],
) -> Reading:
    """The one reading of the data.

    Args:
        source: where the rows come from, for errors.
        samples: some rows as they stand in the data; at least one.
        accepts: shapes the step takes; empty: any.
        wanted: the format the user asked for.
        given: field -> column, as the user named them.
        formats: formats of plugins, used where none of tunekit's own fits.

    Raises:
        DataError: if no format fits, or several equally well, or it is not clear which column is which.
    """
    names = list(dict.fromkeys(str(name) for row in samples for name in row))
    for field, column in given.items():
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
        return _wanted(source, samples, names, wanted, given)
    seen = _looked_at(samples, FORMATS, given)
    # A prompt, or a rating, may stand in any row about answers: read as that it is only where the step asks for it.
    if accepts:
        seen = [one for one in seen if one.form.schema not in _ON_DEMAND or one.form.schema in accepts]
    if not given:
        seen += [
            Reading(form, columns, level, "position")
            for name, columns, level in positional(names, samples)
            for form in FORMATS
            if form.name == name
        ]
    known = [found for found in seen if isinstance(found, Reading)]
    clashes = [found for found in seen if isinstance(found, _Clash)]
    served = [reading for reading in known if conversion(reading.form.schema, tuple(accepts))]
    if not served:
        for clash in clashes:
            if (accepts or not known) and conversion(clash.form.schema, tuple(accepts)):
                raise _unclear(source, clash)
    if known and not served:
        # What says most of the data, for the error: a text with a number is more than a text.
        form = min(known, key=lambda reading: (reading.form.schema == "text", -reading.level)).form
        raise wrong_shape(source, form.schema, form.name, accepts, names)
    if known:
        return _best(source, known, served, accepts)
    return _plugin_reading(source, samples, names, accepts, given, formats)


def _best(source: Source, known: list[Reading], served: list[Reading], accepts: Sequence[str]) -> Reading:
    accepts = list(accepts)
    direct = [reading for reading in served if reading.form.schema in accepts]
    pool = direct or served
    level = max(reading.level for reading in pool)
    pool = [reading for reading in pool if reading.level == level]
    if direct and pool[0].rivals == "tree":
        # A tree holds several things at once, so that what the step likes best is no guess.
        wanted = min(accepts.index(reading.form.schema) for reading in pool)
        pool = [reading for reading in pool if reading.form.schema == accepts[wanted]]
    rivals = [reading for reading in pool if reading.rivals and reading.rivals == pool[0].rivals]
    if len(rivals) > 1:
        raise DataError(
            f"{source.name} can be read as {' and as '.join(_shape(reading) for reading in rivals)}.",
            code="ambiguous-format",
            found="; ".join(f"{reading.form.name}: {reading.form.summary}" for reading in rivals),
            fix="write " + " or ".join(reading.spelling() for reading in rivals),
            details={
                "file": str(source.path or source.name),
                "spellings": [reading.form.id for reading in rivals],
            },
        )
    first = pool[0]
    kind = _says_more(first, known, accepts)
    if kind is not None:
        error = wrong_shape(source, kind.schema, kind.name, accepts)
        error.fix = f"to read them as {first.form.schema} all the same, write {first.spelling()}; {error.fix}"
        raise error
    return first


def _says_more(first: Reading, known: list[Reading], accepts: list[str]) -> Format | None:
    """The format that reads what ``first`` would throw away: the verdict on an answer, the class of a text.

    Answers that people called bad are not to be learned from. Texts with a class are plain text for a step that wants
    nothing else; for one that takes text as a last resort they are most likely the wrong file.
    """
    if not accepts or first.rivals == "tree":
        return None
    more: tuple[str, ...] = ()
    if first.form.schema in ("prompt_completion", "conversation", "text"):
        more = ("feedback", "preference", "ranked")
    if first.form.schema == "text" and accepts[0] != "text":
        more += ("classification", "regression")
    return next((one.form for one in known if one.form.schema in more and one.level == YES), None)


def _shape(reading: Reading) -> str:
    return SHAPES.get(reading.form.schema, reading.form.schema)


# Which columns are which


def _looked_at(samples: Sequence[Row], formats: Sequence[Format], given: Mapping[str, str]) -> list[Reading | _Clash]:
    names = list(dict.fromkeys(str(name) for row in samples for name in row))
    if given:
        # What the user named is enough where it makes a whole row of some format; the other columns are then not
        # looked at, and cannot make another format of it.
        own = [_look(form, samples, [], given) for form in formats]
        found = [reading for reading in own if reading is not None]
        if any(isinstance(reading, Reading) for reading in found):
            return found
    looked = [_look(form, samples, names, given) for form in formats]
    return [reading for reading in looked if reading is not None]


def _look(
    form: Format, samples: Sequence[Row], names: Sequence[str], given: Mapping[str, str]
) -> Reading | _Clash | None:
    found = _columns(form, names, given)
    if found is None or isinstance(found, _Clash):
        return found
    columns, only_asked = found
    used = {*columns.values(), *given.values(), *form.columns, *form.optional}
    if any(name.lower() in form.without and name not in used for name in names) or any(
        field in form.without for field in given
    ):
        return None
    renamed = [_renamed(row, columns) for row in samples]
    level = int(form.looks(renamed))
    if level == NO:
        return None
    unused = tuple(name for name in _TELLING if name in names and name not in used)
    return Reading(form, columns, min(level, 1) if only_asked else level, form.rivals, unused)


def _columns(
    form: Format, names: Sequence[str], given: Mapping[str, str]
) -> tuple[dict[str, str], bool] | _Clash | None:
    """Field -> column where they differ, and whether a weak name took part; None if a column is missing."""
    taken = set(given.values())
    free = [name for name in names if name not in taken]
    found = dict(given)
    only_asked = False
    for both in form.together:
        named = {field: _called(column, free) for field, column in both.items()}
        if not set(both) & set(given) and all(named.values()) and not set(both) <= set(free):
            found |= {field: column for field, column in named.items() if column}
            free = [name for name in free if name not in named.values()]
            break
    clash: _Clash | None = None
    for field in (*form.columns, *form.optional):
        if field in found or field in free:
            continue
        for group in (field, *form.aliases.get(field, ())):
            options = [name for name in free if name.lower() in group.removeprefix("?").split()]
            if len(options) > 1:
                clash = clash or _Clash(form, field, tuple(options))
                break
            if options:
                found[field] = options[0]
                free.remove(options[0])
                only_asked |= group.startswith("?")
                break
        else:
            if field in form.columns:
                return None
    return clash or (found, only_asked)


def _called(name: str, names: Sequence[str]) -> str | None:
    """The column of that name, or else the one that differs in capitals only."""
    if name in names:
        return name
    return next((other for other in names if other.lower() == name), None)


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    if not columns:
        return row
    taken = set(columns.values())
    made = {name: value for name, value in row.items() if name not in taken}
    return made | {field: row[column] for field, column in columns.items() if column in row}


def renaming(convert: Callable[[Row], Converted], columns: Mapping[str, str]) -> Callable[[Row], Converted]:
    """The conversion of rows whose columns have other names."""
    if not columns:
        return convert
    return lambda row: convert(_renamed(row, columns))


# Formats by name, and formats of plugins


def _wanted(
    source: Source, samples: Sequence[Row], names: list[str], form: Format, given: Mapping[str, str]
) -> Reading:
    known = (*form.columns, *form.optional)
    for field in given:
        if field not in known:
            raise DataError(
                f"The format {form.name} has no field {field!r}.",
                code="columns",
                asked=f"columns={dict(given)!r}",
                found=f"fields {_listed(known)}",
                suggestions=nearest(field, known),
            )
    found = _columns(form, names, given)
    if isinstance(found, _Clash):
        raise _unclear(source, found)
    if found is not None:
        return Reading(form, found[0], YES)
    placed = [columns for name, columns, _ in positional(names, samples) if name == form.name and not form.provider]
    if placed and not given:
        return Reading(form, placed[0], YES)
    there = set(names) | set(given)
    missing = [field for field in form.columns if field not in there]
    raise DataError(
        f"{source.name} does not have the columns of the format {form.name}: {_listed(missing)} missing.",
        code="format-columns",
        asked=f"format={form.id!r}, which needs {_listed(form.columns)}",
        found=f"columns {_listed(names)}",
        suggestions=nearest(missing[0], names),
        fix=f"say which column it is: columns={{{missing[0]!r}: ...}}",
        details={"file": str(source.path or source.name), "field": missing[0]},
    )


def _plugin_reading(
    source: Source,
    samples: Sequence[Row],
    names: list[str],
    accepts: Sequence[str],
    given: Mapping[str, str],
    formats: Sequence[Format],
) -> Reading:
    """The one reading by a plugin's format. What a step cannot take does not count, unless nothing else fits.

    Raises:
        DataError: if none fits, or several.
    """
    fitting = detect(samples, formats, given)
    usable = [reading for reading in fitting if conversion(reading.form.schema, tuple(accepts))] or fitting
    if len(usable) > 1:
        spellings = sorted(reading.form.id for reading in usable)
        raise DataError(
            f"{source.name}: {len(usable)} data formats of plugins fit the columns.",
            code="ambiguous-format",
            asked=f"columns {_listed(names)}",
            found=", ".join(f"{reading.form.id} ({', '.join(reading.form.columns)})" for reading in usable),
            fix="write " + " or ".join(f'format="{spelling}"' for spelling in spellings),
            details={"file": str(source.path or source.name), "spellings": spellings},
        )
    if not usable:
        raise _unknown(source, samples, names, accepts, formats)
    return usable[0]


# Errors


def wrong_shape(
    source: Source, schema: str, name: str, accepts: Sequence[str], columns: Sequence[str] = ()
) -> DataError:
    """The error for rows that the step cannot use.

    Args:
        source: where the rows come from.
        schema: their shape.
        name: their format.
        accepts: shapes the step takes.
        columns: columns of the data, to say which could be meant.
    """
    hint = f"use data of the shape {SHAPES.get(accepts[0], accepts[0])}"
    answers = {"prompt_completion", "conversation"} & set(accepts)
    if schema in ("preference", "feedback", "ranked") and answers:
        hint += "; to train on some of the answers only, select them and pass rows with prompt and completion"
    if schema in ("classification", "regression") and answers:
        hint = (
            'to train on the labels as answers, say which column is which: columns={"prompt": ..., "completion": ...}'
        )
    rating = next((column for column in ("rating", "score", "feedback", "reward") if column in columns), None)
    if schema == "prompt_completion" and "feedback" in accepts and rating:
        hint = (
            f"write true or false into the column {rating!r}, or into another one and name it, "
            'columns={"label": ...}: where good ends on its scale is for you to say'
        )
    return DataError(
        f"{source.name} holds {schema} rows ({name}), which this step does not take.",
        code="wrong-shape",
        asked="rows of " + " or ".join(SHAPES.get(shape, shape) for shape in accepts),
        found=SHAPES.get(schema, schema),
        fix=hint,
        details={"file": str(source.path or source.name), "schema": schema, "accepts": list(accepts)},
    )


def _unclear(source: Source, clash: _Clash) -> DataError:
    options = " or ".join(f"columns={{{clash.field!r}: {name!r}}}" for name in clash.columns)
    return DataError(
        f"{source.name} has {len(clash.columns)} columns that can be the {clash.field!r} of {clash.form.name} rows.",
        code="ambiguous-columns",
        found=_listed(clash.columns),
        fix=f"write {options}",
        details={"file": str(source.path or source.name), "field": clash.field, "columns": list(clash.columns)},
    )


def _unknown(
    source: Source, samples: Sequence[Row], names: list[str], accepts: Sequence[str], formats: Sequence[Format]
) -> DataError:
    wanted = [name for name in accepts if name in SHAPES] or list(SHAPES)
    guess = _guess(names)
    fitting = [form for form in (*FORMATS, *formats) if conversion(form.schema, tuple(wanted))]
    first = SCHEMAS[wanted[0]]
    example = ", ".join(f"{field!r}: {(nearest(field, names) or ('...',))[0]!r}" for field in first)
    if "without a header" in guess:
        found = fields_by_kind(names, samples, first)
        example = ", ".join(f"{field!r}: {column!r}" for field, column in found.items())
    return DataError(
        f"{source.name}: the columns fit no known data format.{' ' + guess if guess else ''}",
        code="unknown-columns",
        found=f"columns {_listed(names)}",
        asked="rows of " + " or ".join(SHAPES[name] for name in wanted),
        suggestions=() if guess else _close_formats(names, fitting),
        fix=f"pass columns={{{example}}}, or format= one of {', '.join(form.id for form in fitting)}",
        details={"file": str(source.path or source.name), "columns": names, "accepts": list(accepts)},
    )


def _guess(names: Sequence[str]) -> str:
    """What data of no known format seem to be, as a sentence; empty if there is nothing to say."""
    there = set(names)
    if "parent_id" in there and "replies" not in there:
        return (
            "This looks like a list of single messages that name their parents; nest them first, each message with its "
            "replies in `replies`."
        )
    if there and all(name.isdigit() or len(name) > 60 for name in there):
        return "This looks like a file without a header."
    return ""


def _close_formats(names: Sequence[str], formats: Sequence[Format]) -> tuple[str, ...]:
    """Formats all of whose columns are there up to spelling, as ``alpaca (instruction, output)``."""
    close: list[str] = []
    lowered = [name.lower() for name in names]
    for form in formats:
        if all(difflib.get_close_matches(column, lowered, n=1, cutoff=0.8) for column in form.columns):
            close.append(f"{form.id} ({', '.join(form.columns)})")
    return tuple(close[:3])


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name if len(name) <= 40 else name[:40] + "...") for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
