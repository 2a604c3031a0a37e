"""Real preference data: each set loads by its path alone, for the method that fits it, and no weight is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunekit import Pipeline

SETS = {
    "dpo_en_demo": ("llamafactory/dpo_en_demo.json", "dpo"),
    "kto_en_demo": ("llamafactory/kto_en_demo.json", "kto"),
    "hh-rlhf": ("hh-rlhf/harmless-base/test.jsonl.gz", "dpo"),
    "thumbs": ("open-assistant/en_100_message.jsonl", "kto"),
    "ranked": ("open-assistant/oaast_rm_zh.json", "dpo"),
}
_LOOK = """
import json, sys
from tunekit import Pipeline
made = {}
for name, (path, method) in json.loads(sys.argv[1]).items():
    findings = Pipeline(model=sys.argv[2]).align(method=method, data=path).check()
    made[name] = [[finding.level, finding.code, finding.message] for finding in findings]
print(json.dumps([made, sorted(name for name in ("torch", "transformers", "datasets") if name in sys.modules)]))
"""


def test_check_takes_all_sets_without_torch(shared_data: Path, stories260k: Path) -> None:
    paths = {name: (str(shared_data / path), method) for name, (path, method) in SETS.items()}
    command = [sys.executable, "-c", _LOOK, json.dumps(paths), str(stories260k)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    findings, heavy = json.loads(done.stdout)
    assert heavy == [] and set(findings) == set(SETS)
    assert not [found for of_set in findings.values() for found in of_set if found[0] == "error"]


@pytest.mark.parametrize("name", SETS)
def test_preview_shows_what_is_learned(name: str, shared_data: Path, stories260k: Path) -> None:
    """Every example has a prompt that is not learned and an answer that is, and the answers end."""
    path, method = SETS[name]
    pipeline = Pipeline(model=str(stories260k)).align(
        method=method, data=str(shared_data / path), limit=12, max_length=4096, on_bad_row="skip"
    )
    rows: list[Any] = [row for row in pipeline.preview(n=12).rows if not row.problem]
    assert len(rows) >= 4
    for row in rows:
        learned = [token.label is not None for token in row.tokens]
        begin = learned.index(True)
        assert begin > 0 and all(learned[begin:]) and not row.problem
        assert row.cut or row.stopped
    if method == "kto":
        assert {row.target for row in rows} == {"good", "bad"}
    else:
        assert len(rows) % 2 == 0
        sides = [{token.role for token in row.tokens if token.label is not None} for row in rows[:2]]
        assert sides == [{"chosen"}, {"rejected"}]
