"""Plan files of schema 1 load for ever, to the same plan and the same fingerprint.

Beside each file stands what it means, as ``NAME.expected.json``. An expectation is written once and never changed: a
plan file that someone has kept, and a run folder that is named after a fingerprint, must mean the same next year. For a
new plan file, ``TUNEKIT_UPDATE_GOLDEN=1 python -m pytest tests/test_golden_plans.py`` writes the expectation that is
missing; it overwrites none.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline
from tunekit.manifest import new_manifest
from tunekit.plan import SCHEMA, Plan, ResolvedPlan
from tunekit.planfile import dump_json, dump_yaml, load_json, load_yaml, read_plan

HERE = Path(__file__).parent / "golden" / "plans"
FILES = sorted(path for path in HERE.iterdir() if path.suffixes in ([".yaml"], [".json"]))


def canonical(value: Any) -> str:
    """The text that the fingerprint is the hash of, made without tunekit."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def expectation(path: Path) -> Path:
    return path.with_suffix(".expected.json")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_plan_file_of_schema_1_means_what_it_meant(path: Path) -> None:
    plan = read_plan(path)
    where = expectation(path)
    if os.environ.get("TUNEKIT_UPDATE_GOLDEN") and not where.exists():
        content = {"fingerprint": plan.fingerprint(), "plan": plan.to_data()}
        where.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    expected = json.loads(where.read_text(encoding="utf-8"))
    assert canonical(plan.to_data()) == canonical(expected["plan"])
    assert plan.fingerprint() == expected["fingerprint"]
    assert plan.fingerprint() == hashlib.sha256(canonical(expected["plan"]).encode()).hexdigest()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_written_loads_as_the_same_plan(path: Path) -> None:
    plan = read_plan(path)
    written = (load_yaml(dump_yaml(plan)), load_json(dump_json(plan)), load_yaml(dump_json(plan)))
    for again in written:
        assert again == plan
        assert again.fingerprint() == plan.fingerprint()
    assert load_json(json.dumps(json.loads(expectation(path).read_text(encoding="utf-8"))["plan"])) == plan
    assert Pipeline.from_yaml(path).plan == plan


def test_every_expectation_has_its_file() -> None:
    assert {path.name for path in HERE.iterdir()} == {
        name for path in FILES for name in (path.name, expectation(path).name)
    }


def test_every_key_of_the_format_stands_in_some_file() -> None:
    """The files leave out no spelling: every key at every level, and every form of the values that have several."""
    import yaml

    from tunekit.plan import STEP_KINDS
    from tunekit.planfile import FULL_KEYS, OWN_KEYS, TOP_KEYS

    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES]
    top = {key for data in files for key in data}
    steps = [step for data in files for step in data.get("steps", [])]
    full = [step for step in steps if isinstance(step, dict) and "kind" in step]
    short = [step for step in steps if isinstance(step, dict) and "kind" not in step]
    bodies = [next(iter(step.values())) for step in short]
    assert top == set(TOP_KEYS)
    assert {key for step in full for key in step} == set(FULL_KEYS)
    assert set(OWN_KEYS) <= {key for body in bodies if isinstance(body, dict) for key in body}
    kinds = {step for step in steps if isinstance(step, str)}
    kinds |= {key for step in short for key in step} | {step["kind"] for step in full}
    assert set(STEP_KINDS) <= kinds
    assert {type(data.get("adapter")) for data in files if "adapter" in data} == {dict, str, type(None)}
    assert {type(data["track"]) for data in files if "track" in data} == {str, list}
    evaluated = [step["evaluate"] for step in short if "evaluate" in step]
    assert {type(value) for value in evaluated} == {str, list, dict}
    assert {type(value.get("data")) for value in evaluated if isinstance(value, dict)} >= {str, dict}
    quantized = [step["quantize"] for step in short if "quantize" in step]
    assert {type(value) for value in quantized} == {str, dict}


def test_the_schema_numbers_are_pinned() -> None:
    """A change of these files' meaning needs a new number, and a reader for the old one."""
    plan = Plan()
    resolved = ResolvedPlan(plan=plan, model=None, model_component=None, steps=(), seed=0)
    manifest = new_manifest(resolved, run_id="r", started=0.0, data={})
    assert SCHEMA == 1
    assert plan.to_data()["schema"] == 1
    assert resolved.to_data()["schema"] == 1
    assert manifest["schema"] == 1


def test_the_fingerprint_of_the_empty_plan() -> None:
    assert hashlib.sha256(b'{"schema":1,"steps":[]}').hexdigest() == Plan().fingerprint()
