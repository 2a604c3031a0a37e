"""The embedded data sets: deterministic, canonical, and honest about what they are."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from tunekit import _core_plugin
from tunekit._embedded import stdlib
from tunekit._lazy import load_target
from tunekit.data import canonical_dataset
from tunekit.plugins import API_VERSION

CODE = """
import hashlib, json, sys
from tunekit._embedded import stdlib
out = {}
for name in ("text_rows", "instruction_rows", "preference_rows"):
    out[name] = hashlib.sha256(json.dumps(getattr(stdlib, name)()).encode()).hexdigest()
heavy = {"torch", "numpy", "datasets", "pydantic", "tkinter", "this", "antigravity"} & set(sys.modules)
assert not heavy, heavy
print(json.dumps(out))
"""


def fresh(*flags: str, **env: str) -> Any:
    return subprocess.run(
        [sys.executable, *flags, "-c", CODE], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )


def specs() -> dict[str, Any]:
    return {spec.name: spec for spec in _core_plugin.tunekit_datasets()}


def test_specs() -> None:
    assert _core_plugin.api_version == API_VERSION
    found = specs()
    assert {name: spec.schema for name, spec in found.items()} == {
        "stdlib-text": "text",
        "stdlib-instructions": "prompt_completion",
        "stdlib-preferences": "preference",
    }
    for spec in found.values():
        assert spec.license == stdlib.LICENSE == "PSF-2.0"
        data = canonical_dataset(f"tunekit/{spec.name}", spec.schema, load_target(spec.target)())
        assert data.validate() == len(data)
        assert data.bad_rows == []


def test_sizes() -> None:
    text = stdlib.text_rows()
    assert 400_000 <= sum(len(row["text"]) for row in text) <= 1_000_000
    assert len(text) >= 200
    assert statistics.median(len(row["text"]) for row in text) <= 2100
    assert len(stdlib.instruction_rows()) >= 300
    assert len(stdlib.preference_rows()) >= 200


def test_two_fresh_interpreters_agree() -> None:
    first, second = fresh(PYTHONHASHSEED="1"), fresh("-W", "error", PYTHONHASHSEED="2")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stderr == second.stderr == ""
    assert first.stdout == second.stdout
    mine = hashlib.sha256(json.dumps(stdlib.text_rows()).encode()).hexdigest()
    assert json.loads(first.stdout)["text_rows"] == mine


def test_without_docstrings() -> None:
    result = fresh("-OO")
    assert result.returncode != 0
    assert "DataError" in result.stderr
    assert "without them (-OO)" in result.stderr


def test_without_the_topics() -> None:
    code = "import sys; sys.modules['pydoc_data'] = None; sys.modules['pydoc_data.topics'] = None\n" + CODE.replace(
        "print(json.dumps(out))",
        "assert len(stdlib.text_rows()) > 100\nassert len(stdlib.instruction_rows()) > 300\n"
        "assert not any('Python reference' in r['prompt'][0]['content'] for r in stdlib.instruction_rows())",
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def documented() -> dict[str, str]:
    """Every question that can be asked, with its answer; the data sets hold the first few hundred."""
    return {question: answer for _, question, answer in stdlib._pairs()}


def test_answers_are_what_the_documentation_says() -> None:
    answers = documented()
    assert len(answers) == len(stdlib._pairs())  # no question twice
    assert all(
        answers[row["prompt"][0]["content"]] == row["completion"][0]["content"] for row in stdlib.instruction_rows()
    )
    assert len(set(answers.values())) == len(answers)  # no answer for two questions
    import textwrap

    said = answers["What does the Python function `textwrap.wrap` do?"]
    assert " ".join(textwrap.wrap.__doc__.split()).startswith(said)  # type: ignore[union-attr]
    assert all(40 <= len(answer) <= 600 for answer in answers.values())
    assert all("0x" not in answer or "0x7f" not in answer for answer in answers.values())  # no addresses


def test_preferences_do_not_give_themselves_away() -> None:
    answers = documented()
    rows = stdlib.preference_rows()
    differences = []
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen == answers[row["prompt"][0]["content"]]
        assert rejected != chosen
        differences.append(len(chosen) - len(rejected))
    assert abs(statistics.mean(differences)) < 2
    longer = sum(d > 0 for d in differences) / len(rows)
    shorter = sum(d < 0 for d in differences) / len(rows)
    assert abs(longer - shorter) < 0.1
    other = sum(row["rejected"][0]["content"] in answers.values() for row in rows) / len(rows)
    assert 0.6 < other < 0.72
