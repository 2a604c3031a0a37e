"""What every data format must hold to: a row in, a canonical row out, and nothing else is touched."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tunekit.data.detection import detect
from tunekit.data.formats import FORMATS
from tunekit.data.rows import RowProblem
from tunekit.data.schemas import SCHEMAS, validate_row
from tunekit.errors import DataError
from tunekit.plugins.specs import DataFormatSpec
from tunekit.testing.children import call_in_child, reference
from tunekit.testing.sessions import isolated_session
from tunekit.testing.suite import Suite

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.data import Dataset
    from tunekit.session import Session

__all__ = ["BUILT_IN_ROWS", "DataFormatSuite"]

Row = dict[str, Any]

_USER = {"role": "user", "content": "What is two and two?"}
_BOT = {"role": "assistant", "content": "Four."}
_WRONG = {"role": "assistant", "content": "Five."}
_SHARED = [{"from": "human", "value": "What is two and two?"}, {"from": "gpt", "value": "Four."}]
_FOUR = {"text": "Four.", "role": "assistant", "replies": []}
_REPLIES: Mapping[str, list[Row]] = {
    "ranked": [{**_FOUR, "rank": 0}, {**_FOUR, "text": "Five.", "rank": 1}],
    "feedback": [{**_FOUR, "emojis": {"+1": 2}}],
    "conversation": [_FOUR],
}

BUILT_IN_ROWS: Mapping[str, Row] = {
    "sharegpt_preference": {
        "conversations": _SHARED[:1],
        "chosen": _SHARED[1],
        "rejected": {**_SHARED[1], "value": "5"},
    },
    "messages_preference": {"messages": [_USER], "chosen": _BOT, "rejected": _WRONG},
    "preference": {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five."},
    "instruction_preference": {"instruction": "Add two and two.", "chosen": "Four.", "rejected": "Five."},
    "question_preference": {"question": "Two and two?", "chosen": "Four.", "rejected": "Five."},
    "hh": {"chosen": "\n\nHuman: Two?\n\nAssistant: Four.", "rejected": "\n\nHuman: Two?\n\nAssistant: Five."},
    "chosen_rejected": {"chosen": [_USER, _BOT], "rejected": [_USER, _WRONG]},
    "kto": {"messages": [_USER, _BOT], "label": True},
    "sharegpt_kto": {"conversations": _SHARED, "label": False},
    "feedback": {"prompt": "Two and two?", "completion": "Four.", "label": True},
    "alpaca_kto": {"instruction": "Add two and two.", "output": "Four.", "kto_tag": True},
    "sharegpt": {"conversations": _SHARED},
    "openai": {"messages": [_USER, _BOT]},
    "prompt_completion": {"prompt": "Two and two?", "completion": " Four."},
    "alpaca": {"instruction": "Add.", "input": "two and two", "output": "Four."},
    "question_answer": {"question": "Two and two?", "answer": "Four."},
    "question_response": {"question": "Two and two?", "response": "Four."},
    "prompt_response": {"prompt": "Two and two?", "response": "Four."},
    "query_response": {"query": "Two and two?", "response": "Four."},
    "instruction_response": {"instruction": "Add two and two.", "response": "Four."},
    "input_output": {"input": "two and two", "output": "Four."},
    "votes": {"prompt": "Two and two?", "response": "Four.", "thumbs_up": 3, "thumbs_down": 1},
    "emojis": {"prompt": "Two and two?", "response": "Four.", "emojis": {"+1": 1, "-1": 3}},
    "thumbs": {"question": "Two and two?", "answer": "Four.", "thumb": "up"},
    "best_first": {"instruction": "Add two and two.", "input": "", "output": ["Four.", "Five."]},
    "scored": {"question": "Two and two?", "answers": ["Five.", "Four."], "scores": [0.5, 2]},
    "rated": {
        "instruction": "Add two and two.",
        "completions": [{"response": "Five.", "overall_score": 1}, {"response": "Four.", "overall_score": 9}],
    },
    "rating": {"prompt": "Two and two?", "completion": "Four.", "score": 4.5},
    "prompt": {"prompt": "Two and two?", "result": "4"},
    "question_prompt": {"question": "Two and two?", "result": "4"},
    "instruction_prompt": {"instruction": "Add two and two.", "result": "4"},
    "problem_prompt": {"problem": "Two and two?", "result": "4"},
    "messages_prompt": {"messages": [_USER], "result": "4"},
    "conversations_prompt": {"conversations": _SHARED[:1], "result": "4"},
    "query_prompt": {"query": "Two and two?", "result": "4"},
    **{
        f"tree_{kind}": {"text": "Two and two?", "role": "prompter", "replies": replies}
        for kind, replies in _REPLIES.items()
    },
    **{
        f"prompt_tree_{kind}": {
            "message_tree_id": "1",
            "prompt": {"text": "Two and two?", "role": "prompter", "replies": replies},
        }
        for kind, replies in _REPLIES.items()
    },
    "paragraphs": {"title": "Sums", "author": "Ann", "paragraphs": ["Two and two", "is four."]},
    "content": {"content": "Two and two is four."},
    "ranked": {"prompt": "Two and two?", "completions": ["Five.", "Four."], "ranks": [1, 0]},
    "classification": {"text": "A fine film.", "label": "good"},
    "token_classification": {"tokens": ["In", "Paris"], "tags": ["O", "B-LOC"]},
    "regression": {"text": "A fine film.", "score": 4.5},
    "text": {"text": "Two and two is four."},
}
"""A row of each format of tunekit's own, by its name."""


class DataFormatSuite(Suite):
    """Tests of a data format::

    class TestChatLog(DataFormatSuite):
        name = "acme-formats/chatlog"
        good = [({"log": "ann: Hi\\nbot: Hello"}, {"messages": [...]})]
        bad = [({"log": "no speaker"}, "log")]
    """

    kind = "format"
    good: ClassVar[Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | Sequence[Mapping[str, Any]]]]] = ()
    """Raw rows, each with the canonical row that it becomes, or the list of those. Two or more that differ."""
    bad: ClassVar[Sequence[tuple[Mapping[str, Any], str]]] = ()
    """Raw rows that cannot be used, each with the field that the error must name."""

    @pytest.fixture
    def spec(self, session: Session, entry: Entry) -> DataFormatSpec:
        """The format's record."""
        assert len(self.good) > 1 and self.bad, (
            f"{type(self).__name__} says too little: good needs two or more (raw row, canonical row), "
            "bad one or more (raw row, field)"
        )
        spec = session.spec(entry.component)
        assert isinstance(spec, DataFormatSpec)
        return spec

    @pytest.fixture
    def convert(self, session: Session, entry: Entry) -> Callable[[Mapping[str, Any]], Any]:
        """The format's function."""
        found: Callable[[Mapping[str, Any]], Any] = session.load(entry.component)
        return found

    # ---------------------------------------------------------------- reading

    def test_rows_become_the_expected_ones(self, session: Session, entry: Entry, spec: DataFormatSpec) -> None:
        """Asked for by its short name and by ``dist/name``."""
        short = entry.component.name
        alone = [each.component.name for each in session.components("format")].count(short) == 1
        for name in (short, entry.component.id) if alone else (entry.component.id,):
            data = session.resolve_dataset(self._raw(), format=name)
            assert data.schema == spec.schema, f"rows are {data.schema}, the spec says {spec.schema}"
            self._same_rows(data, spec, f"with format={name!r}")

    @pytest.mark.parametrize("kind", ["list", "jsonl", "json", "csv"])
    def test_it_is_detected(self, session: Session, spec: DataFormatSpec, tmp_path: Path, kind: str) -> None:
        """By its columns alone, from a list, JSON Lines, JSON, and CSV where the rows are flat text."""
        sample = self._raw()
        own = [reading.form.name for reading in detect(sample)]
        assert not own, (
            f"data with the columns {', '.join(sample[0])} are already read as {own[0]}, tunekit's own format; by "
            "design no plugin takes them over. Say in the documentation that users must write format=, and declare "
            "this as a gap"
        )
        if kind == "csv" and not _flat(sample):
            pytest.skip("rows that are not flat text have no CSV form")
        data = session.resolve_dataset(_written(tmp_path, kind, sample))
        assert data.format.rpartition("/")[2] == spec.name, f"it was read as {data.format}"
        self._same_rows(data, spec, f"from {kind}")

    def test_columns_can_be_renamed(self, session: Session, entry: Entry, spec: DataFormatSpec) -> None:
        """``columns={field: column}`` for each column of the format."""
        for field in spec.columns:
            rows = [{"renamed" if name == field else name: value for name, value in row.items()} for row in self._raw()]
            data = session.resolve_dataset(rows, format=entry.component.id, columns={field: "renamed"})
            self._same_rows(data, spec, f"with columns={{{field!r}: 'renamed'}}")

    def test_further_columns_are_left_out(self, session: Session, entry: Entry, spec: DataFormatSpec) -> None:
        """Data have ids, dates and notes; a row may hold more than the format reads."""
        rows = [{"further": number, **row, "remark": None} for number, row in enumerate(self._raw())]
        data = session.resolve_dataset(rows, format=entry.component.id)
        self._same_rows(data, spec, "beside columns that it does not know")

    # ---------------------------------------------------------------- what is bad

    def test_a_bad_row_is_named(self, session: Session, entry: Entry, spec: DataFormatSpec, tmp_path: Path) -> None:
        """File, row, field and reason; and each column that the spec says every row has is missed when it is gone."""
        first = self._raw()[0]
        lacking = [({key: value for key, value in first.items() if key != name}, name) for name in spec.columns]
        lacking += [({**first, name: None}, name) for name in spec.columns]
        for row, field in (*self.bad, *lacking):
            path = _written(tmp_path, "jsonl", [first, dict(row), first])
            try:
                got = list(session.resolve_dataset(path, format=entry.component.id).rows())
            except DataError as error:
                found = error.details
                assert found.get("row") == 2 and str(path) in str(found.get("file")), (
                    f"the error for {row!r} does not say where: {found}"
                )
                assert found.get("field") == field, (
                    f"the error for {row!r} names the field {found.get('field')!r}, but {field!r} is what is wrong: "
                    f"{error.message} Usual mistake: the row is let through and fails later under another name; "
                    f"raise RowProblem({field!r}, 'is ...')"
                )
                assert str(found.get("reason", "")).strip(), f"the error for {row!r} gives no reason"
            else:
                raise AssertionError(
                    f"the row {row!r} is bad in {field!r} and became {got[1:-1]!r}. "
                    f"Usual mistake: a default takes the place of what is missing; raise RowProblem({field!r}, ...)"
                )

    def test_bad_rows_are_left_out_and_counted(
        self, session: Session, entry: Entry, spec: DataFormatSpec, tmp_path: Path
    ) -> None:
        """``on_bad_row="skip"``: the good rows remain, the others are listed with number and field."""
        rows = self._raw()
        mixed = [rows[0], *(dict(row) for row, _ in self.bad), *rows[1:]]
        path = _written(tmp_path, "jsonl", mixed)
        data = session.resolve_dataset(path, format=entry.component.id, on_bad_row="skip")
        self._same_rows(data, spec, 'with on_bad_row="skip"')
        assert [number for number, _ in data.bad_rows] == list(range(2, 2 + len(self.bad))), (
            f"bad rows are 2 to {1 + len(self.bad)}; listed were {data.bad_rows}"
        )
        for (_, reason), (row, field) in zip(data.bad_rows, self.bad, strict=True):
            assert field in reason, f"the reason for {row!r} does not name {field!r}: {reason}"

    # ---------------------------------------------------------------- one row at a time

    def test_converting_changes_nothing(self, convert: Callable[[Mapping[str, Any]], Any]) -> None:
        """The raw row stays as it was, also where it is bad: it may be the caller's own list."""
        for row in (*self._raw(), *(dict(row) for row, _ in self.bad)):
            before = copy.deepcopy(row)
            try:
                made = convert(row)
            except (RowProblem, KeyError, TypeError, ValueError):
                made = None
            assert row == before, (
                f"the row was {before!r} and is now {row!r}. Usual mistake: row.pop(...), or a list of the row that is "
                "appended to; make new dicts and lists"
            )
            if made is not None:
                _spoil(made)
                assert row == before, f"the canonical row shares lists or dicts with the raw row {before!r}: copy them"

    def test_a_row_is_converted_on_its_own(self, convert: Callable[[Mapping[str, Any]], Any]) -> None:
        """Backwards, twice, and behind a bad row: always the same result."""
        rows = self._raw()
        expected = [copy.deepcopy(convert(copy.deepcopy(row))) for row in rows]
        for order in (range(len(rows) - 1, -1, -1), range(len(rows)), [0] * 3):
            for number in order:
                for row, _ in self.bad:
                    try:
                        convert(copy.deepcopy(dict(row)))
                    except (RowProblem, KeyError, TypeError, ValueError):
                        continue
                got = convert(copy.deepcopy(rows[number]))
                assert got == expected[number], (
                    f"the row {rows[number]!r} became {expected[number]!r} first and {got!r} later. Usual mistake: "
                    "something is kept from row to row (a counter, the last speaker, a list as default argument)"
                )

    # ---------------------------------------------------------------- beside other data

    @pytest.mark.parametrize("own", sorted(BUILT_IN_ROWS))
    def test_tunekits_own_data_are_read_as_before(self, session: Session, entry: Entry, own: str) -> None:
        """With and without the plugin the same rows from the same format."""
        row = BUILT_IN_ROWS[own]
        accepts = [form.schema for form in FORMATS if form.name == own]
        before, now = (
            each.resolve_dataset([copy.deepcopy(row)], accepts=accepts) for each in (self._without(entry), session)
        )
        assert (now.format, list(now.rows())) == (before.format, list(before.rows())) and now.format == own

    def test_unknown_data_stay_unknown(self, session: Session, entry: Entry, spec: DataFormatSpec) -> None:
        """A misspelt column is an error today, and is not guessed at because this format is installed."""
        names = sorted({column for form in FORMATS for column in form.columns} | {"id", "name", "content", "data"})
        without = self._without(entry)
        for name in names:
            row = {name: "What is two and two?"}
            if _format_or_code(without, row) == "unknown-columns":
                found = _format_or_code(session, row)
                assert found == "unknown-columns", (
                    f"a row with nothing but {name!r} is now read as {found}. Usual mistake: columns={spec.columns!r} "
                    "are so general that they fit other people's data; name every column that rows of the format have, "
                    "and in `without` the columns that rule it out"
                )

    # ---------------------------------------------------------------- before a run

    def test_the_fingerprint_follows_the_content(
        self, session: Session, entry: Entry, spec: DataFormatSpec, tmp_path: Path
    ) -> None:
        """Equal data, equal fingerprint; one row less, another one."""
        name = entry.component.id
        path = _written(tmp_path, "jsonl", self._raw())
        for data in (path, self._raw()):
            one, two = (session.resolve_dataset(data, format=name).fingerprint() for _ in range(2))
            assert one == two, "the fingerprint of the same data differs: finished steps would be computed again"
            less = session.resolve_dataset(self._raw()[:-1], format=name).fingerprint()
            assert less != one, "the fingerprint does not change with the data: a stale step would be reused"

    def test_checking_needs_no_torch(
        self, session: Session, entry: Entry, spec: DataFormatSpec, tmp_path: Path
    ) -> None:
        """``Pipeline.check`` in a fresh interpreter: no error, no heavy import, and the same rows as here."""
        path = _written(tmp_path, "jsonl", self._raw())
        plugins = [reference(plugin) for plugin in self.plugins]
        arguments = {"plugins": plugins, "data": str(path), "format": entry.component.id}
        found = call_in_child("check_data", arguments, env={"PYTHONHASHSEED": "1"})
        assert not found["errors"], f"check() refuses good data: {found['errors']}"
        assert not found["heavy"], (
            f"check() imported {', '.join(found['heavy'])}. It converts rows before anything heavy is installed or "
            "loaded: do without such modules"
        )
        here = session.resolve_dataset(path, format=entry.component.id)
        assert found["rows"] == list(here.rows()) and found["fingerprint"] == here.fingerprint(), (
            "another process reads other rows from the same file. Usual mistake: they depend on the order of a set, on "
            "the time, or on the machine"
        )

    # ---------------------------------------------------------------- helpers

    def _raw(self) -> list[Row]:
        return [copy.deepcopy(dict(row)) for row, _ in self.good]

    def _without(self, entry: Entry) -> Session:
        """A session without the format."""
        provider = entry.component.provider
        return isolated_session(disable=() if provider == "inline" else (provider,))

    def _same_rows(self, data: Dataset, spec: DataFormatSpec, how: str) -> None:
        got = list(data.rows())
        pairs = [(raw, one) for raw, made in self.good for one in ([made] if isinstance(made, Mapping) else list(made))]
        assert len(got) == len(pairs), f"{len(self.good)} rows became {len(got)} {how}; expected are {len(pairs)}"
        for one, (raw, expected) in zip(got, pairs, strict=True):
            assert spec.schema in SCHEMAS, f"there is no row shape {spec.schema!r}: {', '.join(SCHEMAS)}"
            try:
                wanted = validate_row(copy.deepcopy(dict(expected)), spec.schema)
            except RowProblem as problem:
                raise AssertionError(
                    f"`good` expects {expected!r}, which is no {spec.schema} row: {problem.text()}"
                ) from None
            assert one == wanted, f"{how}, the row {raw!r} became {one!r}; expected is {wanted!r}"


def _written(folder: Path, kind: str, rows: Sequence[Row]) -> Any:
    if kind == "list":
        return copy.deepcopy(list(rows))
    path = folder / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "json":
        path.write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _flat(rows: Sequence[Row]) -> bool:
    return all(list(row) == list(rows[0]) and all(isinstance(v, str) and v for v in row.values()) for row in rows)


def _format_or_code(session: Session, row: Row) -> str:
    try:
        return session.resolve_dataset([dict(row)]).format
    except DataError as error:
        return error.code


def _spoil(value: Any) -> None:
    """Change every list and dict of a value, to see who shares them."""
    if isinstance(value, dict):
        for each in value.values():
            _spoil(each)
        value["spoilt"] = True
    elif isinstance(value, list):
        for each in value:
            _spoil(each)
        value.append("spoilt")
