"""Every Python block of the README and the docs runs, page by page, in an empty folder."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_pages import BLOCK, code_of

from tunekit.testing import warm

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

RUN_ELSEWHERE = {"docs/tutorial/first-plugin.md": "tests/test_fresh_environment.py"}
"""Pages that a test of their own follows to the letter."""

TOGETHER = ("docs/reference/hooks/", "docs/reference/plugin-api.md", "docs/how-to/plugins/")
"""Pages about plugins: many and short. They share one process, each with a namespace and a folder of its own."""

LIGHT = "docs/reference/hooks/"
"""Pages that must not need torch."""


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def short(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


CODE = [page for page in PAGES if code_of(page) and short(page) not in RUN_ELSEWHERE]
SHARED = sorted((p for p in CODE if short(p).startswith(TOGETHER)), key=lambda p: (LIGHT not in short(p), p))


@pytest.mark.parametrize("page", [page for page in CODE if page not in SHARED], ids=short)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    done = warm.run(["-c", code_of(page)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    runner = ROOT / "tests" / "support" / "run_pages.py"
    done = subprocess.run([sys.executable, runner, *SHARED], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("page", SHARED, ids=short)
def test_the_code_of_a_page_about_plugins_runs(page: Path, results: dict[str, Any]) -> None:
    result = results[str(page)]
    assert not result["error"], result["error"]
    if LIGHT in short(page):
        assert not result["torch"], "the page imported torch"


def test_pages_that_are_run_elsewhere_are() -> None:
    for page, test in RUN_ELSEWHERE.items():
        if (ROOT / page).exists():
            assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_the_code_of_the_readme_is_valid(tmp_path: Path) -> None:
    """The first block is what ``make demo`` runs; the second needs the reader's own files, which ``check`` says; the
    third is a plugin."""
    line, own, plugin = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    compile(line, "README", "exec")
    done = subprocess.run([sys.executable, "-c", own], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "alpaca.json" in done.stdout and "pairs.json" in done.stdout and "benchmarks" in done.stdout
    done = subprocess.run([sys.executable, "-c", plugin], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=short)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        assert (page.parent / link).exists(), link


HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ANCHOR = re.compile(r"\]\(([^)#:]*)#([^)]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_links_to_headings_lead_to_one(page: Path) -> None:
    for link, anchor in ANCHOR.findall(prose(page)):
        target = (page.parent / link) if link else page
        headings = HEADING.findall(prose(target))
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{link}#{anchor}"


def test_the_index_leads_to_every_page() -> None:
    """From docs/index.md, in one step or two."""
    seen = {ROOT / "docs" / "index.md"}
    for _ in range(2):
        for page in list(seen):
            links = LINK.findall(prose(page))
            seen |= {(page.parent / link).resolve() for link in links if link.endswith(".md")}
    assert set(PAGES) <= seen, [short(page) for page in sorted(set(PAGES) - seen)]


def test_the_example_plan_is_the_line() -> None:
    from tunekit import Pipeline

    line = Pipeline().pretrain().sft().align(method="dpo").lora(r=8).quantize("int4").evaluate(["mmlu", "gsm8k"])
    assert Pipeline.from_yaml(ROOT / "examples" / "plan.yaml") == line.seed(0)


def test_the_toy_of_the_rlhf_example_is_what_its_page_says() -> None:
    """One story in four ends well, every chosen end does, and the prompts are new."""
    example = runpy.run_path(str(ROOT / "examples" / "rlhf.py"), run_name="imported")
    stories, pairs, prompts = example["toy_data"]()

    def good(text: str) -> bool:
        return any(word in text for word in example["GOOD_WORDS"])

    assert len(stories) == len(pairs) == 2 * len(prompts) == 128
    assert sum(good(row["completion"]) for row in stories) == 32
    assert all(good(row["chosen"]) and not good(row["rejected"]) for row in pairs)
    assert not {row["prompt"] for row in prompts} & {row["prompt"] for row in (*stories, *pairs)}


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_import_what_exists(script: Path) -> None:
    done = warm.run(["-c", f"import runpy; runpy.run_path({str(script)!r}, run_name='imported')"])
    assert done.returncode == 0, done.stderr
