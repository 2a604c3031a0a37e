"""How names of benchmarks, sets of them, their data and their settings are bound."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from tunekit import Pipeline, Session
from tunekit._step_data import open_benchmarks
from tunekit.errors import CheckFailed, DataError, UnknownNameError
from tunekit.plugins import BenchmarkSpec, Setup, StepSpec, hookimpl
from tunekit.resolve import resolve


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    benchmarks: list[str]
    data: str | dict[str, str] | None = None
    limit: int | None = None
    settings: dict[str, dict[str, Any]] = {}
    min: dict[str, float] = {}
    variants: bool = False


class OwnOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lengths: list[int] = [10]


class Quiz:
    """Questions of a file, or of nowhere."""

    variants = (Setup(name="letters", equals="a harness: quiz"), Setup(name="0-shot", equals="a paper"))

    def __init__(self, digits: int = 0) -> None:
        self.digits = digits

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield {"id": "1", "options": dict(options), "source": source}

    def request(self, row: Mapping[str, Any]) -> Any: ...

    def judge(self, row: Mapping[str, Any], response: Any) -> Any: ...

    def protocol(self) -> Mapping[str, Any]:
        return {"metric": "acc", "shots": 0}


class Steps:
    def run(self, ctx: Any) -> Any: ...


def _spec(name: str, **more: Any) -> BenchmarkSpec:
    return BenchmarkSpec(name=name, target=f"{__name__}:Quiz", **more)


class Plugin:
    @hookimpl
    def tunekit_benchmarks(self) -> list[BenchmarkSpec]:
        return [
            _spec("plain"),
            _spec("placed", folders=("llm-foundry/placed.jsonl",), hub="acme/placed"),
            _spec("sampled", sample=True, options=f"{__name__}:OwnOptions"),
            BenchmarkSpec(name="all-of-it", target="", members=("plain", "placed", "sampled")),
            BenchmarkSpec(name="two", target="", members=("plain", "placed")),
        ]

    @hookimpl
    def tunekit_steps(self) -> list[StepSpec]:
        return [StepSpec(name="evaluate", target=f"{__name__}:Steps", options=f"{__name__}:Options", makes="report")]

    @hookimpl
    def tunekit_resolve_benchmark(self, ref: str) -> BenchmarkSpec | None:
        if ref.startswith("sums/"):
            return _spec("sums", brings_data=True, arguments={"digits": int(ref.removeprefix("sums/"))})
        if ref.endswith(".quiz"):
            if not Path(ref).is_file():
                raise DataError(f"There is no file {ref}.", code="no-file")
            return _spec(Path(ref).stem, data=str(Path(ref).resolve()))
        return None


@pytest.fixture
def session() -> Session:
    return Session(plugins=[Plugin()], autoload=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "llm-foundry").mkdir(parents=True)
    (tmp_path / "data" / "llm-foundry" / "placed.jsonl").write_text("{}")
    return tmp_path / "data"


def _pipeline(session: Session, names: Any, tmp_path: Path, **options: Any) -> Pipeline:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    return Pipeline(model=str(model), session=session).evaluate(names, **options)


def _bound(pipeline: Pipeline, session: Session) -> list[Any]:
    """The jobs of the evaluate step."""
    return list(open_benchmarks(resolve(pipeline.plan, session).steps[-1], session))


def test_a_set_is_its_members_and_says_which_have_no_data(session: Session, folder: Path, tmp_path: Path) -> None:
    pipeline = _pipeline(session, ["all-of-it"], tmp_path, data=str(folder))
    found = [finding for finding in pipeline.check() if finding.code == "set-member-left-out"]
    assert found[0].level == "warning" and found[0].details["benchmarks"] == ["plain", "sampled"]
    jobs = _bound(pipeline, session)
    assert [job.component.name for job in jobs] == ["placed"]
    assert jobs[0].source == folder / "llm-foundry" / "placed.jsonl"


def test_a_set_without_any_data_is_an_error(session: Session, tmp_path: Path) -> None:
    findings = _pipeline(session, ["two"], tmp_path).check()
    assert [f.code for f in findings if f.level == "error" and f.step == "evaluate"] == ["no-benchmark-data"]


def test_an_empty_folder_does_not_hide_the_data(session: Session, folder: Path, tmp_path: Path) -> None:
    (folder / "placed" / "test").mkdir(parents=True)
    (folder / "placed" / ".keep").write_text("")
    (folder / "plain").mkdir()
    pipeline = _pipeline(session, ["placed"], tmp_path, data=str(folder))
    assert _bound(pipeline, session)[0].source == folder / "llm-foundry" / "placed.jsonl"
    (found,) = [
        f for f in _pipeline(session, ["plain"], tmp_path, data=str(folder)).check() if f.step and f.level == "error"
    ]
    assert found.code == "missing-data" and "plain, holds no file" in found.message and "put its files" in found.fix
    (folder / "placed" / "test" / "rows.jsonl").write_text("{}")
    assert _bound(pipeline, session)[0].source == folder / "placed"


def test_data_for_one_benchmark_do_not_make_another_run_on_its_sample(
    session: Session, folder: Path, tmp_path: Path
) -> None:
    data = {"placed": str(folder / "llm-foundry" / "placed.jsonl")}
    pipeline = _pipeline(session, ["placed", "sampled", "sums/3"], tmp_path, data=data)
    (found,) = [f for f in pipeline.check() if f.step and f.level == "error"]
    assert found.code == "no-benchmark-data" and found.message == "data names no folder for sampled."
    assert "'sampled'" in found.fix and "a step of its own" in found.fix and "hub" not in found.fix
    left_out = [f for f in _pipeline(session, ["all-of-it"], tmp_path, data=data).check() if f.step]
    assert [f.code for f in left_out] == ["set-member-left-out"]
    assert left_out[0].details["benchmarks"] == ["plain", "sampled"]
    nothing = [f for f in _pipeline(session, ["all-of-it"], tmp_path, data={}).check() if f.step]
    assert [(f.code, f.level) for f in nothing] == [("no-benchmark-data", "error")]


def test_a_benchmark_named_beside_its_set_is_measured_once(session: Session, folder: Path, tmp_path: Path) -> None:
    pipeline = _pipeline(session, ["all-of-it", "placed"], tmp_path, data=str(folder))
    assert [job.component.name for job in _bound(pipeline, session)] == ["placed"]


def test_settings_reach_their_benchmark_alone(session: Session, folder: Path, tmp_path: Path) -> None:
    settings = {"sampled": {"limit": 3, "lengths": [5, 6]}}
    data = {"placed": str(folder / "llm-foundry" / "placed.jsonl"), "sampled": str(folder)}
    pipeline = _pipeline(session, ["placed", "sampled"], tmp_path, data=data, limit=9, settings=settings)
    placed, sampled = _bound(pipeline, session)
    assert (placed.options["limit"], placed.options["data"]) == (9, data["placed"])
    assert (sampled.options["limit"], sampled.options["lengths"]) == (3, [5, 6])
    assert sampled.options["data"] == str(folder)
    assert "lengths" not in placed.options and "settings" not in sampled.options


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ({"sampeld": {}}, "unknown-benchmark-settings", "sampled"),
        ({"sampled": {"lenghts": [3]}}, "unknown-option", "lengths"),
        ({"sampled": {"limt": 3}}, "unknown-option", "limit"),
        ({"sampled": {"lengths": "x"}}, "option-type", "lengths"),
        ({"sampled": {"limit": "many"}}, "option-type", "limit"),
        ({"sampled": {"min": {"sampled": 2}}}, "option-of-the-step", "min belongs to evaluate(min={'sampled': ...})"),
        ({"sampled": {"data": "x"}}, "option-of-the-step", "data belongs to evaluate(data={'sampled': ...})"),
        ({"sampled": {"settings": {}}}, "option-of-the-step", "settings belongs to evaluate(settings=...)"),
    ],
)
def test_wrong_settings_are_refused_by_check(
    session: Session, tmp_path: Path, settings: Any, code: str, says: str
) -> None:
    pipeline = _pipeline(session, ["sampled"], tmp_path, settings=settings)
    (found,) = [f for f in pipeline.check() if f.level == "error" and f.step == "evaluate"]
    assert found.code == code and says in str(found) + json.dumps(found.details)


def test_a_plugin_makes_a_benchmark_of_a_name(session: Session, tmp_path: Path) -> None:
    (job,) = _bound(_pipeline(session, ["sums/3"], tmp_path), session)
    assert job.benchmark.digits == 3 and job.component.name == job.source_label == "sums/3" and job.source is None


def test_a_file_of_questions_counts_by_its_content(session: Session, tmp_path: Path) -> None:
    from tunekit._step_data import benchmark_key

    path = tmp_path / "own.quiz"
    path.write_text("one")
    (job,) = _bound(_pipeline(session, [str(path)], tmp_path), session)
    before = benchmark_key(job)
    path.write_text("two")
    assert job.source == path.resolve() and benchmark_key(job)["data"] != before["data"]


def test_an_unknown_name_and_what_a_plugin_says_of_its_own(session: Session, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        session.benchmark("placd")
    assert caught.value.suggestions[0] == "placed"
    with pytest.raises(CheckFailed, match="There is no file"):
        resolve(_pipeline(session, [str(tmp_path / "gone.quiz")], tmp_path).plan, session)


def test_a_set_with_a_target_is_no_set() -> None:
    class Wrong:
        @hookimpl
        def tunekit_benchmarks(self) -> list[BenchmarkSpec]:
            return [_spec("both", members=("a",))]

    (record,) = [record for record in Session(plugins=[Wrong()], autoload=False).plugins() if record.name != "tunekit"]
    assert record.state == "broken" and "has both a target and members" in record.reason


@pytest.mark.parametrize("name", ["sampled", "inline/sampled"])
@pytest.mark.parametrize("measured", ["sampled", "inline/sampled"])
def test_data_and_settings_take_the_short_and_the_full_name(
    session: Session, folder: Path, tmp_path: Path, name: str, measured: str
) -> None:
    options = {"data": {name: str(folder)}, "settings": {name: {"limit": 3, "lengths": [5]}}}
    pipeline = _pipeline(session, [measured], tmp_path, **options)
    assert [f for f in pipeline.check() if f.level == "error" and f.step == "evaluate"] == []
    (job,) = _bound(pipeline, session)
    assert job.source == folder
    assert (job.options["data"], job.options["limit"], job.options["lengths"]) == (str(folder), 3, [5])


def test_settings_of_one_benchmark_under_two_names_are_refused(session: Session, tmp_path: Path) -> None:
    settings = {"sampled": {"limit": 3}, "inline/sampled": {"limit": 4}}
    findings = _pipeline(session, ["sampled"], tmp_path, settings=settings).check()
    assert [f.code for f in findings if f.level == "error" and f.step == "evaluate"] == ["benchmark-settings-twice"]


@pytest.mark.parametrize(
    ("options", "level", "code", "fix"),
    [
        ({"min": {"sampled:letters": 0.1}}, "error", "minimum-needs-variants", "add variants=True"),
        ({"min": {"sampled:leters": 0.1}, "variants": True}, "error", "unknown-minimum", '"sampled:letters"'),
        ({"min": {"inline/sampled:x": 0.1}, "variants": True}, "error", "unknown-minimum", "'inline/sampled'"),
        ({"min": {"sampled": 30}}, "warning", "minimum-above-one", "0.3, not 30?"),
        ({"min": {"sampled:letters": 0.1}, "variants": True}, "", "", ""),
        ({"min": {"inline/sampled:letters": 1}, "settings": {"sampled": {"variants": True}}}, "", "", ""),
    ],
)
def test_a_minimum_names_a_score_that_there_will_be(
    session: Session, tmp_path: Path, options: Any, level: str, code: str, fix: str
) -> None:
    findings = _pipeline(session, ["sampled"], tmp_path, **options).check()
    found = [f for f in findings if f.step and f.level != "note"]
    assert [(f.level, f.code) for f in found] == ([(level, code)] if code else [])
    assert not found or fix in found[0].fix


def test_a_gate_on_what_was_not_measured_says_what_was() -> None:
    from tunekit._gates import below, gate_error
    from tunekit.artifacts import Score

    score = Score(
        benchmark="a/b", metric="acc", value=0.5, stderr=0.1, ci_low=0.4, ci_high=0.6, n=9, setup="0-shot", source="x"
    )
    minimum = {"dist/a/b": 0.4, "a/b:0-shot": 0.5, "a/b:letters": 0.1}
    missed = below(minimum, {"a/b": score})
    assert missed == {"a/b:letters": None}
    error = gate_error("evaluate", minimum, missed, "folder", {"a/b": score})
    assert "did not measure" in error.message and "measured were a/b" in error.fix and "lower min" not in error.fix


def test_a_gate_on_what_was_not_scored_is_not_met() -> None:
    """A split without public answers has the value 0, which no minimum may take for a score."""
    from tunekit._gates import below, gate_error
    from tunekit.artifacts import Score

    score = Score(
        benchmark="ceval", metric="unscored: no answers", value=0.0, stderr=0.0, ci_low=0.0, ci_high=0.0, n=9,
        source="x", protocol={"scored": False},
    )  # fmt: skip
    missed = below({"ceval": 0.0}, {"ceval": score})
    assert missed == {"ceval": score}
    assert "ceval was not scored (unscored: no answers)" in gate_error("evaluate", {"ceval": 0.0}, missed, "f").found
