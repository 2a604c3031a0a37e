"""The records that a real run of iterative-dpo leaves are those that the report of a run shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tunekit
from tunekit.testing import tiny_pair


def longer(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    return [float(len(ids)) for ids in columns["completion_ids"]]


def test_a_real_run_shows_its_rounds(tmp_path: Path) -> None:
    result = (
        tunekit.Pipeline(model=tiny_pair())
        .align(
            method="iterative-dpo",
            prompts=[{"prompt": f"Count to {number}."} for number in range(8)],
            reward=longer,
            rounds=2,
            num_generations=2,
            max_new_tokens=4,
            validation=2,
            samples=0,
        )
        .run(workdir=tmp_path / "run")
    )
    records = result.step("align").artifact.details["rounds"]
    html = (result.workdir / "report.html").read_text(encoding="utf-8")
    table = re.search(r'<table class="rounds">.*?<tbody>(.*?)</tbody>', html)
    assert table is not None
    shown = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table.group(1))]
    assert [cells[0] for cells in shown] == ["1", "2"]
    for cells, record in zip(shown, records, strict=True):
        assert (cells[4] == "kept") is record["kept"]
        if "win_rate" in record:
            assert cells[1].startswith(f"{record['win_rate']['value']:.1%}".replace(".0%", "%"))
    kept = sum(record["kept"] for record in records)
    assert "<dt>rounds</dt>" in html and f"{kept} of 2 kept: 1 " in html
