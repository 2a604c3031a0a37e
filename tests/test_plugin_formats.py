"""Data formats that plugins bring: when they count, how they are called, and what their failures say."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline
from tunekit._work import data_facts, prepare
from tunekit.cancel import CancelToken
from tunekit.data import FORMAT_NAMES, Format, load_dataset
from tunekit.errors import AmbiguousNameError, DataError, MissingDependencyError
from tunekit.plugins import DataFormatSpec, RowProblem, TrainerSpec, hookimpl
from tunekit.resolve import resolve
from tunekit.session import Session
from tunekit.settings import Settings

ROWS = [{"ask": f"What is {n}?", "reply": f"It is {n}."} for n in range(5)]
CANONICAL = [{"prompt": row["ask"], "completion": row["reply"]} for row in ROWS]


def asked(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": row["ask"], "completion": row["reply"]}


def spec(name: str = "asked", **fields: Any) -> DataFormatSpec:
    given = {"schema": "prompt_completion", "columns": ("ask", "reply"), "target": "acme_formats:convert", **fields}
    return DataFormatSpec(name=name, **given)


def plugin(*specs: DataFormatSpec) -> types.ModuleType:
    module = types.ModuleType("acme")
    module.tunekit_formats = hookimpl(lambda: list(specs))  # type: ignore[attr-defined]
    return module


def session(*plugins: Any) -> Session:
    return Session(plugins=plugins, autoload=False, settings=Settings())


Install = Callable[[Callable[[Mapping[str, Any]], Any]], None]


@pytest.fixture
def converts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Sets what ``acme_formats:convert`` does."""
    module = types.ModuleType("acme_formats")
    monkeypatch.setitem(sys.modules, "acme_formats", module)

    def install(function: Callable[[Mapping[str, Any]], Any]) -> None:
        module.convert = function  # type: ignore[attr-defined]

    install(asked)
    yield install


def test_a_format_is_used_by_name_and_by_detection(converts: Install) -> None:
    one = session(plugin(spec()))
    for name in ("asked", "inline/asked", None):
        data = one.resolve_dataset(ROWS, format=name)
        assert list(data.rows()) == CANONICAL
        assert data.format == "inline/asked" and data.schema == data.native == "prompt_completion"
    assert data.describe() == "list: inline/asked -> prompt_completion, 5 rows"
    assert one.registry.find("format", "asked").component.id == "inline/asked"
    assert one.data_format("asked") == one.registry.find("format", "asked").component
    assert one.data_format("alpaca") is None


def test_columns_optional_limit_and_conversion_apply(converts: Install) -> None:
    one = session(plugin(spec(optional=("hint",))))
    rows = [{"Q": "a", "A": "b", "H": "c"}, {"Q": "d", "A": "e", "H": "f"}]
    named = {"ask": "Q", "reply": "A", "hint": "H"}
    for name in ("asked", None):
        data = one.resolve_dataset(rows, format=name, columns=named, limit=1, accepts=("text",))
        assert list(data.rows()) == [{"text": "ab"}]
    with pytest.raises(DataError, match="has no field 'answer'"):
        one.resolve_dataset(rows, format="asked", columns={"answer": "A"})
    with pytest.raises(DataError, match="'reply' missing") as caught:
        one.resolve_dataset([{"ask": "a"}], format="asked")
    assert "format='inline/asked', which needs 'ask', 'reply'" in str(caught.value)
    with pytest.raises(DataError, match="which this step does not take"):
        one.resolve_dataset(ROWS, accepts=("preference",))


def test_installing_a_plugin_changes_nothing_that_could_be_read(converts: Install) -> None:
    """Its columns fit an Alpaca file, and it is even called alpaca: both mean tunekit's own."""
    greedy = session(plugin(spec("alpaca", columns=("output",)), spec("wide", columns=("instruction", "output"))))
    rows = [{"instruction": "do", "output": "done"}]
    for form in (None, "alpaca", "tunekit/alpaca"):
        mine, plain = greedy.resolve_dataset(rows, format=form), load_dataset(rows, format=form)
        assert mine.format == plain.format == "alpaca"
        assert mine.fingerprint() == plain.fingerprint() and list(mine.rows()) == list(plain.rows())
    converts(lambda row: {"prompt": "p", "completion": row["output"]})
    assert list(greedy.resolve_dataset(rows, format="inline/alpaca").rows()) == [{"prompt": "p", "completion": "done"}]


def test_no_detection_where_the_data_say_more(converts: Install) -> None:
    one = session(plugin(spec(without=("verdict",))))
    judged = [{**row, "verdict": True} for row in ROWS]
    with pytest.raises(DataError, match="fit no known data format") as caught:
        one.resolve_dataset(judged)
    assert "inline/asked" in caught.value.fix and caught.value.suggestions == ("inline/asked (ask, reply)",)
    assert len(one.resolve_dataset(judged, format="asked")) == 5


def form(provider: str, name: str = "asked", schema: str = "prompt_completion") -> Format:
    made = {"preference": {"prompt": "p", "chosen": "a", "rejected": "b"}}.get(schema)
    return Format(
        name=name,
        provider=provider,
        version="1.0",
        schema=schema,
        columns=("ask", "reply"),
        convert=lambda row: made or asked(row),
    )


def test_two_that_fit() -> None:
    both = (form("acme-data"), form("other-data", "chat"))
    with pytest.raises(DataError) as caught:
        load_dataset(ROWS, formats=both)
    assert caught.value.code == "ambiguous-format"
    assert caught.value.fix == 'write format="acme-data/asked" or format="other-data/chat"'
    assert load_dataset(ROWS, formats=both, format="chat").format == "other-data/chat"
    # One of them makes what the step cannot take, so there is no doubt.
    apart = (form("acme-data"), form("other-data", "pairs", "preference"))
    assert load_dataset(ROWS, formats=apart, accepts=("preference",)).format == "other-data/pairs"
    assert load_dataset(ROWS, formats=apart, accepts=("text",)).format == "acme-data/asked"
    with pytest.raises(DataError, match="2 data formats of plugins fit"):
        load_dataset(ROWS, formats=apart)


def test_two_of_one_name() -> None:
    both = (form("acme-data"), form("Other_Data"))
    with pytest.raises(AmbiguousNameError) as caught:
        load_dataset(ROWS, formats=both, format="asked")
    assert caught.value.fix == 'write format="acme-data/asked" or format="Other_Data/asked"'
    assert load_dataset(ROWS, formats=both, format="other-data/asked").format == "Other_Data/asked"


def test_unknown_names_list_what_there_is() -> None:
    broken = types.ModuleType("acme_broken")
    broken.api_version = 9  # type: ignore[attr-defined]
    one = session(plugin(spec()), broken)
    with pytest.raises(DataError) as caught:
        one.resolve_dataset(ROWS, format="aksed")
    error = caught.value
    assert error.code == "unknown-format" and error.suggestions[0] == "inline/asked"
    assert error.details["known"] == [*FORMAT_NAMES, "inline/asked"] and "inline/asked" in error.fix
    assert "acme_broken (inline) is incompatible" in error.found
    assert [item["plugin"] for item in error.details["not_loaded"]] == ["acme_broken"]
    with pytest.raises(DataError) as caught:
        one.resolve_dataset(ROWS, format="other/asked")
    assert caught.value.suggestions == ("inline/asked",)
    with pytest.raises(DataError, match="acme_broken"):
        one.resolve_dataset([{"x": 1}])


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        (RowProblem("reply", "has no answer"), "reply", "has no answer"),
        (KeyError("reply"), "reply", "is missing"),
        (KeyError("ask"), "", "cannot be converted by inline/asked: KeyError: 'ask'"),
        (ValueError("no number"), "", "cannot be converted by inline/asked: ValueError: no number"),
        (TypeError("not text"), "", "cannot be converted by inline/asked: TypeError: not text"),
        (AttributeError("strip"), "", "cannot be converted by inline/asked: AttributeError: strip"),
    ],
)
def test_failures_name_file_row_field_and_reason(
    converts: Install, tmp_path: Path, bad: Exception, field: str, reason: str
) -> None:
    def convert(row: Mapping[str, Any]) -> Any:
        if "reply" not in row:
            raise bad
        return asked(row)

    converts(convert)
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"ask": "What?"}]))
    one = session(plugin(spec()))
    with pytest.raises(DataError) as caught:
        list(one.resolve_dataset(file).rows())
    details = caught.value.details
    assert (details["file"], details["row"], details["reason"]) == (str(file), 6, reason)
    assert details.get("field", "") == field
    if not isinstance(bad, RowProblem):
        assert caught.value.__cause__ is bad, "the traceback of the plugin is kept"
    skipped = one.resolve_dataset(file, on_bad_row="skip")
    assert len(skipped) == 5 and [row for row, _ in skipped.bad_rows] == [6]


def test_problems_of_rows_cross_processes() -> None:
    problem = pickle.loads(pickle.dumps(RowProblem("reply", "is odd", "mend it")))
    assert (problem.field, problem.reason, problem.fix) == ("reply", "is odd", "mend it")
    assert problem.text() == "field 'reply' is odd"


def test_formats_without_a_session_are_guarded_too() -> None:
    bad = dataclasses.replace(form("acme-data"), convert=lambda row: row["rpely"])
    with pytest.raises(DataError, match="row 1: field 'rpely' is missing"):
        load_dataset(ROWS, formats=[bad]).peek()


def test_what_comes_out_is_checked(converts: Install) -> None:
    one = session(plugin(spec()))
    for made, says in [
        (["a"], "became a list in inline/asked"),
        (None, "became null in inline/asked"),
        ({"prompt": "a"}, "field 'completion' is missing"),
        ({"prompt": "a", "completion": ""}, "field 'completion' is empty"),
        ({"prompt": 3, "completion": "b"}, "field 'prompt'"),
    ]:
        converts(lambda row, made=made: made)
        with pytest.raises(DataError, match=says):
            list(one.resolve_dataset(ROWS).rows())


def test_the_users_rows_stay_as_they_are(converts: Install) -> None:
    def convert(row: Any) -> Any:
        return {"prompt": row.pop("ask"), "completion": row.pop("reply")}

    converts(convert)
    rows = [dict(row) for row in ROWS]
    data = session(plugin(spec())).resolve_dataset(rows)
    assert list(data.rows()) == list(data.rows()) == CANONICAL and rows == ROWS


def test_the_target_is_imported_for_the_first_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "acme_formats", None)
    one = session(plugin(spec(requires=("no-such-package",))))
    data = one.resolve_dataset(ROWS)
    assert data.format == "inline/asked"
    with pytest.raises(MissingDependencyError) as caught:
        next(data.rows())
    assert caught.value.fix == "pip install 'no-such-package'"
    assert len(one.resolve_dataset([{"text": "a"}])) == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"schema": "prompt-completion"}, "did you mean 'prompt_completion'"),
        ({"schema": "reviews"}, "is none of text, prompt_completion"),
        ({"columns": "ask"}, r"columns of 'asked' is 'ask', not a tuple of strings; write \('ask',\)"),
        ({"columns": ()}, "names no columns"),
        ({"without": ("ask",)}, "both uses and rules out the column 'ask'"),
        ({"options": "a:B"}, "a format takes none"),
    ],
)
def test_specs_are_looked_at(fields: dict[str, Any], says: str) -> None:
    one = session(plugin(spec(**fields)))
    record = next(record for record in one.plugins() if record.name == "acme")
    assert record.state == "broken" and re.search(says, record.reason)
    assert one.components("format") == ()


def test_checking_specs_imports_nothing_heavy() -> None:
    code = (
        "import sys, types\n"
        "from tunekit.plugins import DataFormatSpec, hookimpl\n"
        "from tunekit import Session\n"
        "m = types.ModuleType('acme')\n"
        "m.tunekit_formats = hookimpl(lambda: [\n"
        "    DataFormatSpec(name='x', target='a:b', schema='text', columns=('y',))])\n"
        "assert [e.component.name for e in Session([m], autoload=False).components('format')] == ['x']\n"
        "print([n for n in ('torch', 'numpy', 'pydantic', 'pandas', 'datasets') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# In a pipeline


def versioned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> Session:
    """A session with the format from an installed distribution of this version."""
    site = tmp_path / f"site-{version}"
    site.mkdir()
    info = site / f"acme_data-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-data\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[tunekit]\nacme-data = acme_data_plugin\n")
    monkeypatch.syspath_prepend(site)
    module = plugin(spec())
    module.__name__ = "acme_data_plugin"
    monkeypatch.setitem(sys.modules, "acme_data_plugin", module)
    return Session(plugins=[module], autoload=False, settings=Settings())


def test_the_fingerprint_counts_the_version_of_the_format(
    converts: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prints = []
    for version in ("1.0", "1.1", "1.1"):
        with monkeypatch.context() as patch:
            folder = tmp_path / str(len(prints))
            folder.mkdir()
            one = versioned(patch, folder, version)
            data = one.resolve_dataset(file)
            assert (data.format, data.format_version) == ("acme-data/asked", version)
            assert data.take(2).format_version == version
            assert data_facts(data)["format"] == "acme-data/asked"
            prints.append(data.fingerprint())
    assert prints[0] != prints[1] == prints[2]


def test_the_key_of_a_step_counts_it(converts: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Same file, same plan: a new release of the plugin runs the step again."""
    keys = []
    for version in ("1.0", "1.1"):
        with monkeypatch.context() as patch:
            one = versioned(patch, tmp_path, version)
            trainer = types.ModuleType("acme_trainer")
            trainer.tunekit_trainers = hookimpl(_trainers)  # type: ignore[attr-defined]
            file = tmp_path / "asked.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
            both = Session(plugins=[trainer, *one.hooks._plugins], autoload=False, settings=Settings())
            plan = Pipeline().pretrain(method="plain", data=str(file)).plan
            (work,) = prepare(resolve(plan, both), both, {}, CancelToken(), lambda *_: None)
            keys.append(work.key)
    assert keys[0] != keys[1]


def _trainers() -> list[TrainerSpec]:
    made = TrainerSpec(
        name="plain",
        stage="pretrain",
        target="builtins:object",
        data=("prompt_completion",),
        options="tunekit.plugins.options:TrainOptions",
    )
    return [made]


def test_check_finds_what_is_wrong_with_a_format(
    converts: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def errors(one: Session, **options: Any) -> list[tuple[str, str]]:
        found = Pipeline(model="x").sft(**options).check(session=one)
        return [(f.code, f.fix) for f in found if f.level == "error" and f.step == "sft"]

    def with_trainers(*plugins: Any) -> Session:
        return Session(plugins=plugins, settings=Settings())

    assert errors(with_trainers(plugin(spec())), data=str(file)) == []
    assert errors(with_trainers(plugin(spec())), data=str(file), format="inline/asked") == []
    (unknown,) = errors(with_trainers(plugin(spec())), data="owner/on-the-hub", format="aksed")
    assert unknown[0] == "unknown-format"
    (missing,) = errors(with_trainers(plugin(spec(requires=("no-such-package>=2",)))), data=str(file))
    assert missing == ("missing-package", "pip install 'no-such-package>=2'")
