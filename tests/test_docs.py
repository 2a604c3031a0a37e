"""Every Python block of the README and the docs runs, page by page, in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_code_of_the_readme_is_valid(tmp_path: Path) -> None:
    """The first block is what ``make demo`` runs; the second needs the reader's own files, which ``check`` says."""
    line, own = blocks(ROOT / "README.md")
    compile(line, "README", "exec")
    done = subprocess.run([sys.executable, "-c", own], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "alpaca.json" in done.stdout and "pairs.json" in done.stdout and "benchmarks" in done.stdout


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_example_plan_is_the_line() -> None:
    from tunekit import Pipeline

    line = Pipeline().pretrain().sft().align(method="dpo").lora(r=8).quantize("int4").evaluate(["mmlu", "gsm8k"])
    assert Pipeline.from_yaml(ROOT / "examples" / "plan.yaml") == line.seed(0)


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_import_what_exists(script: Path) -> None:
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
