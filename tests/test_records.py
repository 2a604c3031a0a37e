"""Errors, events, plans and artifacts as values: they pickle, compare, hash and survive JSON."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from pathlib import Path

import pytest

from tunekit import errors, events, manifest, storage
from tunekit.artifacts import Artifact, ModelCard, Score, ScoredRow
from tunekit.cancel import CancelToken
from tunekit.plan import AdapterPlan, FrozenDict, Plan, StepPlan, canonical_json, freeze, thaw

ALL_ERRORS = [
    getattr(errors, name)
    for name in errors.__all__
    if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), errors.TunekitError)
]


@pytest.mark.parametrize("cls", ALL_ERRORS)
def test_errors_keep_their_fields_through_pickle(cls: type[errors.TunekitError]) -> None:
    error = cls("It broke.", asked="a", found="b", suggestions=["c", "d"], fix="type e", details={"row": 3})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert again.fields() == error.fields()
    assert str(again) == "It broke.\n  asked: a\n  found: b\n  did you mean: c, d?\n  fix: type e"


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.PipelineError, ValueError),
        (errors.OptionsError, ValueError),
        (errors.DataError, ValueError),
        (errors.UnknownNameError, LookupError),
        (errors.AmbiguousNameError, LookupError),
        (errors.MissingDependencyError, ImportError),
        (errors.ArtifactError, OSError),
    ],
)
def test_errors_are_also_the_builtin_ones(cls: type[errors.TunekitError], builtin: type[Exception]) -> None:
    assert issubclass(cls, builtin)
    assert cls("x").code == cls.default_code


def test_nearest_ignores_case() -> None:
    assert errors.nearest("DPOO", ["dpo", "KTO"]) == ("dpo",)
    assert errors.nearest("nothing alike", ["dpo", "kto"]) == ()


def test_plans_are_values() -> None:
    step = StepPlan("sft", "sft", options={"data": [{"text": "a"}], "limit": 3})
    plan = Plan(model="m", steps=(step,), adapter=AdapterPlan("lora", {"r": 8}), seed=1)
    for again in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert again == plan and hash(again) == hash(plan) and again.fingerprint() == plan.fingerprint()
    assert json.loads(json.dumps(plan.to_data())) == plan.to_data()
    assert plan.with_step(step) != plan
    assert len(plan.steps) == 1


def test_frozen_data_cannot_be_changed() -> None:
    frozen = freeze({"a": [1, {"b": 2}]})
    assert thaw(frozen) == {"a": [1, {"b": 2}]}
    assert canonical_json(frozen) == '{"a":[1,{"b":2}]}'
    with pytest.raises(TypeError):
        frozen["c"] = 1
    with pytest.raises(TypeError):
        frozen["a"][1].update(b=3)
    assert hash(frozen) == hash(FrozenDict({"a": (1, {"b": 2})}))


def test_objects_are_no_part_of_a_plan() -> None:
    with pytest.raises(errors.OptionsError, match="cannot be part of a plan"):
        freeze({"data": object()})
    with pytest.raises(errors.OptionsError, match="must be strings"):
        freeze({1: 2})


def test_artifacts_survive_json(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = ScoredRow(id="a/1", prompt_hash="h", prediction="B", target="B", correct=True, logprobs=(-1.5, -0.5))
    rows.write_text(json.dumps({**row.__dict__, "added_later": 1}) + "\n")
    score = Score(
        benchmark="mmlu",
        metric="acc",
        value=1.0,
        stderr=0.0,
        ci_low=0.2,
        ci_high=1.0,
        n=1,
        source="x",
        rows_path=str(rows),
    )
    artifact = Artifact(
        kind="model", model=ModelCard(path="model", parameters=3), scores={"mmlu": score}, details={"a": [1, None]}
    )
    again = Artifact.from_data({**json.loads(json.dumps(artifact.to_data())), "added_later": True})
    assert again == artifact
    assert again.scores["mmlu"].rows == [row]
    rows.write_text("{broken\n")
    with pytest.raises(errors.ArtifactError, match="cannot be read") as caught:
        _ = score.rows
    assert "line 1" in str(caught.value)
    with pytest.raises(errors.ArtifactError):
        Artifact.from_data({"model": {}})


def test_events_are_frozen_and_become_json() -> None:
    event = events.Notice(run_id="r", seq=0, time=1.0, step="sft", code="c", message="m")
    with pytest.raises(AttributeError):
        event.code = "d"  # type: ignore[misc]
    assert json.loads(json.dumps(events.event_to_dict(event)))["event"] == "Notice"


def test_cancel_tokens_work_across_threads() -> None:
    token = CancelToken()
    token.raise_if_cancelled()
    thread = threading.Thread(target=token.cancel, args=("from a thread",))
    thread.start()
    thread.join()
    token.cancel("later reasons do not count")
    with pytest.raises(errors.RunCancelled, match="from a thread"):
        token.raise_if_cancelled()


def test_atomic_writes_leave_the_old_file_when_they_fail(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    storage.write_json(path, {"v": 1})

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(RuntimeError):
        storage.write_json(path, {"v": Unprintable()})
    assert storage.read_json(path) == {"v": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    path.write_text("{")
    with pytest.raises(errors.ArtifactError, match=r"a\.json"):
        storage.read_json(path)


def test_digests_see_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = storage.weights_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert storage.weights_digest(tmp_path) == first
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert storage.weights_digest(tmp_path) != first
    whole = storage.folder_digest(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    assert storage.folder_digest(tmp_path) != whole
    with pytest.raises(errors.ArtifactError, match="no weight files"):
        storage.weights_digest(tmp_path / "nowhere")


def test_publishing_never_overwrites(tmp_path: Path) -> None:
    for name in ("partial", "final"):
        (tmp_path / name).mkdir()
    with pytest.raises(errors.ArtifactError, match="exists already"):
        storage.publish(tmp_path / "partial", tmp_path / "final")
    assert (tmp_path / "partial").is_dir()


def test_the_record_of_packages_follows_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once per state of the search path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "acme-thing" not in manifest.packages()
    info = tmp_path / "acme_thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-thing\nVersion: 1.0\n")
    assert manifest.packages()["acme-thing"] == "1.0"
    newer = info.rename(tmp_path / "acme_thing-1.1.dist-info")
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-thing\nVersion: 1.1\n")
    found = manifest.packages()
    assert found["acme-thing"] == "1.1" and found["pytest"] == pytest.__version__
    found.clear()
    assert manifest.packages(), "what is handed out is a copy"
