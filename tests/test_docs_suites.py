"""The components on the how-to pages pass the suites that the pages name, with the test classes that they show.

All but the trainer's, whose suite takes longest; its like is tested as ``tunekit-example`` and as a scaffold.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from run_pages import code_of

from tunekit.testing import warm

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "how-to" / "plugins"

PLUGIN_OF = {
    "adapter": "Gain",
    "benchmark": "Capitals",
    "data-format": "tickets",
    "exporter": "Half",
    "quantizer": "Plugin",
    "reward": "Brevity",
    "tracker": "Wall",
}
"""Page to what it hands to the session."""


def module_of(page: Path) -> str:
    """The component of a page, without its demonstration."""
    return re.split(r"^(?:session|pair) = |^Path\(|^@step|^@trainer", code_of(page), maxsplit=1, flags=re.M)[0]


def suite_of(page: Path, plugin: str) -> str:
    """The test class of a page, for a component that is not installed."""
    text = page.read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```py\n(class Test.*?)^```", text, re.M | re.S)
    (suite,) = re.findall(r"\((\w+Suite)\)", shown)
    module = f"page_{page.stem.replace('-', '_')}"
    inline = rf'    name = "inline/\1"\n    plugins = ("{module}:{plugin}",)'
    shown = re.sub(r'^    name = "[\w-]+/([\w-]+)"', inline, shown, flags=re.M)
    return f"import pytest\nfrom {module} import *\nfrom tunekit.testing import RewardCase, {suite}\n\n\n{shown}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Test class to test to what is wrong with it, from one run of all pages."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "conftest.py").write_text('pytest_plugins = "tunekit.testing.pytest"\n')
    for stem, plugin in PLUGIN_OF.items():
        page = PAGES / f"{stem}.md"
        name = stem.replace("-", "_")
        made = "\n\nPlugin = Plugin()\n" if plugin == "Plugin" else ""
        (folder / f"page_{name}.py").write_text(module_of(page) + made, encoding="utf-8")
        (folder / f"test_page_{name}.py").write_text(suite_of(page, plugin), encoding="utf-8")
    report = folder / "report.xml"
    flags = ["-q", "-p", "no:cacheprovider", "--rootdir", folder, "--tunekit-update", "--junitxml", report]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = warm.run(["-m", "pytest", *flags, folder], cwd=folder, env=env, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = str(case.get("classname")).split(".")[-2].removeprefix("test_page_").replace("_", "-")
        bad = [child.get("message") or "" for child in case if child.tag in ("failure", "error")]
        found.setdefault(module, {})[str(case.get("name"))] = "".join(bad)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stem", PLUGIN_OF)
def test_the_component_of_a_page_passes_its_suite(stem: str, outcomes: dict[str, dict[str, str]]) -> None:
    tests = outcomes[stem]
    assert len(tests) >= 8
    assert {name: message for name, message in tests.items() if message} == {}
