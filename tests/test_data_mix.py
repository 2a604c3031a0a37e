"""Mixtures: exact shares, one order per seed, parts read by their own formats and reported, errors that name them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import data_plugin
import pytest
import toy_plugin

import tunekit
from tunekit import Pipeline, Session
from tunekit.data import Dataset, load_dataset, mix
from tunekit.errors import DataError


def texts(prefix: str, n: int) -> list[dict[str, Any]]:
    return [{"text": f"{prefix}{i}"} for i in range(n)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(ref: Any, **options: Any) -> list[str]:
    return [row["text"] for row in load_dataset(ref, **options).rows()]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return jsonl(tmp_path / "a.jsonl", texts("a", 1000)), jsonl(tmp_path / "b.jsonl", texts("b", 500))


def test_shares_hold_at_any_place_and_parts_keep_their_order(files: tuple[str, str]) -> None:
    a, b = files
    rows = read(mix({a: 0.7, b: 0.3}))
    for n in range(1, len(rows) + 1):
        assert abs(sum(row[0] == "a" for row in rows[:n]) - 0.7 * n) < 1.6
    assert [row for row in rows if row[0] == "a"] == [f"a{i}" for i in range(1000)]
    pairs = Counter(x[0] + y[0] for x, y in zip(read(mix({a: 1, b: 1})), read(mix({a: 1, b: 1}, seed=1)), strict=False))
    assert min(pairs[pair] for pair in ("aa", "ab", "ba", "bb")) > 150  # no fixed pattern


def test_uneven_shares_do_not_drift() -> None:
    parts = [
        {"data": texts(name, 4000), "weight": weight, "name": name}
        for name, weight in zip("abc", (1, 1, 4), strict=True)
    ]
    rows = read(mix(parts, rows=3000))
    assert Counter(row[0] for row in rows) == {"a": 500, "b": 500, "c": 2000}


def test_first_ends_with_the_last_row_of_a_part(files: tuple[str, str]) -> None:
    a, b = files
    for seed in range(20):
        rows = read(mix({a: 2, b: 1}, seed=seed))
        assert rows[-1] in ("a999", "b499")


def test_the_seed_settles_the_order(files: tuple[str, str]) -> None:
    a, b = files
    weights = {a: 0.5, b: 0.5}
    assert read(mix(weights)) == read(mix(weights)) != read(mix(weights, seed=1))
    one, two, other = (load_dataset(mix(weights, seed=seed)).fingerprint() for seed in (0, 0, 1))
    assert one == two != other


def test_first_never_repeats_and_all_reads_every_part_whole() -> None:
    parts = [(texts("a", 10), 1), (texts("b", 200), 1)]
    rows = read(mix(parts))
    assert len(rows) == len(set(rows)) and {f"a{i}" for i in range(10)} < set(rows)
    data = load_dataset(mix(parts, stop="all"))
    counts = Counter(row["text"] for row in data.rows())
    assert set(counts) == {f"a{i}" for i in range(10)} | {f"b{i}" for i in range(200)}
    assert max(counts[f"b{i}"] for i in range(200)) == 1
    assert [(part["rows"], part["passes"]) for part in data.parts] == [
        (sum(n for text, n in counts.items() if text[0] == "a"), max(counts.values())),
        (200, 1),
    ]
    assert len(read(mix(parts, stop="all", rows=1000))) == 1000
    assert len(read(mix(parts, rows=1000))) < 40  # "first" wins


def test_parts_are_read_by_their_own_format_and_reported(tmp_path: Path) -> None:
    alpaca = jsonl(tmp_path / "alpaca.jsonl", [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(70)])
    chat = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}] * 2
    shared = jsonl(tmp_path / "chat.jsonl", [{"conversations": chat}] * 40)
    odd = jsonl(tmp_path / "odd.jsonl", [{"ask": "q", "say": "a"}] * 40)
    step = ("prompt_completion", "conversation")
    data = load_dataset(
        mix(
            {alpaca: 0.4, shared: 0.3, odd: {"weight": 0.3, "columns": {"prompt": "ask", "completion": "say"}}},
            rows=100,
        ),
        accepts=step,
    )
    # A conversation of several answers is not cut down to the last one, though prompt_completion comes first.
    assert data.schema == "conversation"
    assert data.describe() == (
        "mix: mix -> conversation, 40% alpaca.jsonl (alpaca, 40 rows) + 30% chat.jsonl (sharegpt, 30 rows) "
        "+ 30% odd.jsonl (prompt_completion, 30 rows), 100 rows"
    )
    assert [(p["name"], p["rows"], p["format"], p["source"]) for p in data.parts] == [
        (alpaca, 40, "alpaca", alpaca), (shared, 30, "sharegpt", shared), (odd, 30, "prompt_completion", odd),
    ]  # fmt: skip
    assert json.loads(json.dumps(data.parts)) == data.parts
    assert load_dataset(mix({alpaca: 0.5, odd: {"weight": 0.5, "columns": {"prompt": "ask", "completion": "say"}}}),
                        accepts=step).schema == "prompt_completion"  # fmt: skip


def test_fingerprint_covers_every_part(files: tuple[str, str]) -> None:
    a, b = files
    before = load_dataset(mix({a: 0.7, b: 0.3})).fingerprint()
    assert load_dataset(mix({a: 0.6, b: 0.4})).fingerprint() != before
    assert load_dataset(mix({a: 0.7, b: 0.3}), limit=5).fingerprint() != before
    Path(b).write_text(Path(b).read_text(encoding="utf-8") + '{"text": "more"}\n', encoding="utf-8")
    assert load_dataset(mix({a: 0.7, b: 0.3})).fingerprint() != before


def test_errors_name_the_part(files: tuple[str, str], tmp_path: Path) -> None:
    a, b = files
    missing = str(tmp_path / "bb.jsonl")
    with pytest.raises(DataError, match=r"Part .*bb\.jsonl of the mixture: There is no data file") as caught:
        load_dataset(mix({a: 1, missing: 1}))
    assert caught.value.suggestions[0] == b and caught.value.details["part"] == missing
    bad = jsonl(tmp_path / "bad.jsonl", [*texts("c", 20), {"text": 7}])
    with pytest.raises(DataError, match=r"Part .*bad\.jsonl of the mixture: bad\.jsonl row 21: field 'text'") as caught:
        read(mix({a: 0.5, bad: 0.5}))
    assert {key: caught.value.details[key] for key in ("file", "row", "line", "field")} == {
        "file": bad, "row": 21, "line": 21, "field": "text",
    }  # fmt: skip
    data = load_dataset(mix({a: 0.5, bad: 0.5}), on_bad_row="skip")
    assert data.bad_rows == [(21, f"{bad}: field 'text' is a number (7), not text")]
    with pytest.raises(DataError) as caught:
        load_dataset(mix([(texts("a", 3), 1), ([{"prompt": "a", "chosen": "b", "rejected": "c"}], 1)]))
    assert caught.value.code == "mixed-shapes" and "preference" in caught.value.found


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: mix({}),
        lambda: mix("a.jsonl"),
        lambda: mix({"a": 0}),
        lambda: mix({"a": float("nan")}),
        lambda: mix({"a": "most"}),
        lambda: mix({"a": {"wieght": 1}}),
        lambda: mix([("a", 1, 2)]),
        lambda: mix({"a": 1}, stop="never"),
        lambda: mix({"a": 1}, rows=0),
        lambda: mix({"a": 1}, seed=-1),
        lambda: load_dataset({"mix": {"a": 1}, "sede": 3}),
    ],
)
def test_wrong_mixtures(wrong: Any) -> None:
    with pytest.raises(DataError) as caught:
        wrong()
    assert caught.value.code == "mix"


def test_a_mixture_is_plan_data(files: tuple[str, str], tmp_path: Path) -> None:
    a, b = files
    p = Pipeline().pretrain(data=mix({a: 0.7, b: {"weight": 0.3, "format": "text"}}, seed=3, rows=50))
    path = tmp_path / "plan.yaml"
    p.to_yaml(path)
    again = Pipeline.from_yaml(path)
    assert again == p
    ref = again.plan.steps[0].options["data"]
    assert load_dataset(ref).fingerprint() == load_dataset(mix({a: 0.7, b: 0.3}, seed=3, rows=50)).fingerprint()
    # As a person would write it.
    path.write_text(f"steps:\n- pretrain:\n    data:\n      mix: {{{a}: 0.7, {b}: 0.3}}\n", encoding="utf-8")
    short = Pipeline.from_yaml(path).plan.steps[0].options["data"]
    assert read(short) == read(mix({a: 0.7, b: 0.3}))


def test_parts_in_memory_short_names_and_generators(files: tuple[str, str]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": [f"f{i}" for i in range(60)]})
    made = mix(
        [
            {"data": frame, "weight": 2},
            {"data": ({"text": f"g{i}"} for i in range(50)), "weight": 1, "name": "made"},
            {"data": "tunekit/stdlib-text", "weight": 1},
        ],
        rows=100,
    )
    p = Pipeline().pretrain(data=made)
    ref = p.plan.steps[0].options["data"]
    assert [str(part["data"]).partition("-")[0] for part in ref["mix"]] == [
        "object:DataFrame", "object:generator", "tunekit/stdlib",
    ]  # fmt: skip
    assert not [finding for finding in p.check() if "data" in finding.code or "row" in finding.code]
    opened = Session().resolve_dataset(ref, accepts=("text",), objects=p._objects)
    assert opened.validate() == 100
    assert [(part["name"], part["rows"]) for part in opened.parts] == [
        ("DataFrame", 50), ("made", 25), ("tunekit/stdlib-text", 25),
    ]  # fmt: skip
    assert isinstance(opened, Dataset) and tunekit.mix is mix


def test_objects_in_tasks_and_validation_become_references() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a"], "label": ["x"]})
    p = Pipeline().post_pretrain(
        tasks={"one": {"data": frame, "weight": 0.5}, "two": {"data": "b.csv"}}, validation=frame
    )
    options = p.plan.steps[0].options
    assert options["tasks"]["one"]["data"] == options["validation"] and options["validation"].startswith("object:")
    assert options["tasks"]["two"] == {"data": "b.csv"} and options["tasks"]["one"]["weight"] == 0.5


def test_check_leaves_hub_parts_to_the_run_and_looks_at_the_others(files: tuple[str, str], tmp_path: Path) -> None:
    a, _ = files
    p = Pipeline().pretrain(data=mix({a: 1, "nobody-here/no-such-set": 1}))
    assert not [finding for finding in p.check() if finding.code == "hub"]
    p = Pipeline().pretrain(data=mix({str(tmp_path / "none.jsonl"): 1, "nobody-here/no-such-set": 1}))
    assert [finding.code for finding in p.check() if finding.level == "error" and finding.step] == ["missing-file"]
    assert "50% " + a in Pipeline().pretrain(data=mix({a: 1, "nobody-here/no-such-set": 1})).explain()


def test_what_was_used_is_told_with_a_limit_and_not_by_a_look(files: tuple[str, str]) -> None:
    a, b = files
    data = load_dataset(mix({a: 0.7, b: 0.3}), limit=100)
    assert len(data) == 100
    data.peek(3)
    assert [part["rows"] for part in data.parts] == [70, 30]
    assert data.describe().endswith("70% a.jsonl (text, 70 rows) + 30% b.jsonl (text, 30 rows), 100 rows")


def test_a_run_records_the_parts_and_runs_again_when_one_changes(files: tuple[str, str], tmp_path: Path) -> None:
    a, b = files
    toy_plugin.write_model(tmp_path / "base", 1.0)
    session = Session(plugins=[data_plugin], autoload=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl(folder / "c.jsonl", texts("c", 100))
    p = Pipeline(model=str(tmp_path / "base")).sft(data=mix({a: 0.5, b: 0.3, str(folder): 0.2}), limit=50)
    data_plugin.RUNS.clear()
    runs: list[int] = []
    for change in (None, None, lambda: jsonl(folder / "d.jsonl", texts("d", 5)), lambda: (folder / "d.jsonl").unlink()):
        if change is not None:
            change()
        p.run(workdir=tmp_path / "w", session=session)
        runs.append(len(data_plugin.RUNS))
    assert runs[:3] == [1, 1, 2]
    facts = json.loads((tmp_path / "w" / "manifest.json").read_text(encoding="utf-8"))["data"]["sft"]
    assert [(part["name"], part["rows"]) for part in facts["parts"]] == [(a, 25), (b, 15), (str(folder), 10)]
    assert facts["rows"] == 50


def test_a_generator_keeps_its_rows_when_its_shape_has_to_change() -> None:
    chat = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2}] * 40
    asked = ({"instruction": f"q{number}", "output": "a"} for number in range(40))
    data = load_dataset(mix([(asked, 1), (chat, 1)]), accepts=("prompt_completion", "conversation"))
    questions = [row["messages"][0]["content"] for row in data.rows() if len(row["messages"]) == 2]
    assert data.schema == "conversation" and questions[:30] == [f"q{number}" for number in range(30)]
    assert [part["name"] for part in data.parts] == ["generator", "list"]


def test_parts_without_a_known_end_need_a_number_of_rows_to_be_read_to_their_ends() -> None:
    def endless() -> Any:
        number = 0
        while True:
            number += 1
            yield {"text": f"e{number}"}

    parts = {"endless": {"data": endless}, "list": {"data": texts("a", 3)}}
    with pytest.raises(DataError, match="does not know its end: endless"):
        load_dataset(mix(parts, stop="all"))
    assert len(load_dataset(mix(parts, stop="all", rows=20))) == 20
    assert len(load_dataset(mix(parts, stop="all"), limit=20)) == 20
