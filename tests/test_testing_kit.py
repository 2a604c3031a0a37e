"""The test kit as pytest sees it: gaps, suites without a name, global state. Each case is a child pytest."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tunekit.testing import Gap
from tunekit.testing.gaps import gap_problem

HEAD = """
import os
import pytest
from tunekit.testing import Gap, Suite

class ToySuite(Suite):
    kind = "trainer"
    name = "tunekit-trl/dpo"

    def test_sum(self):
        total = 1
        assert total == 2

    def test_lookup(self):
        {}["missing"]

    @pytest.mark.parametrize("case", ["good", "bad"])
    def test_case(self, case):
        assert case == "good"

    def test_fine(self):
        pass
"""


class Child:
    def __init__(self, done: subprocess.CompletedProcess[str], report: Path) -> None:
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        self.outcomes: dict[str, str] = {}
        self.messages: dict[str, str] = {}
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):
                result = next(iter(case), None)
                name = case.attrib["name"]
                self.outcomes[name] = "passed" if result is None else result.tag
                self.messages[name] = "" if result is None else result.attrib.get("message", "")


def run(folder: Path, source: str, *options: str, plugin: bool = True) -> Child:
    file = folder / "test_it.py"
    file.write_text(HEAD + source)
    report = folder / "out.xml"
    loaded = ["-p", "tunekit.testing.pytest"] if plugin else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "-c", "/dev/null"]
    command += [f"--rootdir={folder}", *loaded, f"--junitxml={report}", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    return Child(done, report)


def test_a_declared_gap_is_an_expected_failure_and_the_rest_runs(tmp_path: Path) -> None:
    child = run(
        tmp_path,
        """
class TestToy(ToySuite):
    gaps = {
        "test_sum": Gap("sums are off by one", raises=AssertionError),
        "test_lookup": Gap("nothing is kept yet", raises=(KeyError, IndexError)),
        "test_case[bad]": Gap("bad is not good", raises=AssertionError),
    }
""",
    )
    assert child.code == 0, child.text
    assert child.outcomes == {
        "test_sum": "skipped",
        "test_lookup": "skipped",
        "test_case[good]": "passed",
        "test_case[bad]": "skipped",
        "test_fine": "passed",
    }
    assert "sums are off by one" in child.messages["test_sum"]


def test_a_gap_that_closes_fails_the_suite(tmp_path: Path) -> None:
    gap = 'class TestToy(ToySuite):\n    gaps = {"test_fine": Gap("not yet", raises=AssertionError)}\n'
    child = run(tmp_path, gap, "-k", "test_fine")
    assert (child.code, child.outcomes) == (1, {"test_fine": "failure"})
    assert "[XPASS(strict)] not yet" in child.messages["test_fine"]


def test_a_gap_with_another_exception_fails(tmp_path: Path) -> None:
    gap = 'class TestToy(ToySuite):\n    gaps = {"test_lookup": Gap("not yet", raises=AssertionError)}\n'
    child = run(tmp_path, gap, "-k", "test_lookup")
    assert (child.code, child.outcomes) == (1, {"test_lookup": "failure"})
    assert "KeyError" in child.messages["test_lookup"]


def test_a_gap_for_an_unknown_test_is_an_error_of_collection(tmp_path: Path) -> None:
    child = run(tmp_path, 'class TestToy(ToySuite):\n    gaps = {"test_sums": Gap("x", raises=KeyError)}\n')
    assert child.code == 2, child.text
    assert "TestToy.gaps names 'test_sums', which is no test of it; did you mean 'test_sum'?" in child.text


def test_gaps_without_the_plugin_are_not_silently_ignored(tmp_path: Path) -> None:
    gap = 'class TestToy(ToySuite):\n    gaps = {"test_sum": Gap("x", raises=AssertionError)}\n'
    child = run(tmp_path, gap, "-k", "test_sum", plugin=False)
    assert child.code == 1
    assert 'pytest_plugins = "tunekit.testing.pytest"' in child.text


@pytest.mark.parametrize(
    ("reason", "raises", "says"),
    [
        ("", AssertionError, "needs a reason"),
        ("  ", AssertionError, "needs a reason"),
        ("x", "AssertionError", "names the exception class"),
        ("x", (), "names the exception class"),
        ("x", Exception, "hides every other bug"),
        ("x", (KeyError, BaseException), "hides every other bug"),
    ],
)
def test_a_gap_says_why_and_what(reason: str, raises: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Gap(reason, raises)  # type: ignore[arg-type]


def test_gaps_are_gaps() -> None:
    assert gap_problem("TestX", {"test_a": "broken"}, ["test_a"]) == (  # type: ignore[dict-item]
        "TestX.gaps['test_a'] is 'broken', not a Gap(reason, raises=...)"
    )
    assert gap_problem("TestX", {"test_a[case]": Gap("x", raises=KeyError)}, ["test_a"]) == ""


ENTRY = "    def test_entry(self, entry):\n        assert entry.component.id == 'tunekit-trl/dpo'\n"


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ('name = ""', 'set name = "dist/name". Known: '),
        ('name = "dpx"', "there is no trainer 'dpx'. Known: "),
        ('name = "causal"', "causal serves several stages (post_pretrain, pretrain): set stage in TestToy"),
        ('name = "dpo"; stage = "sft"', "There is no sft method 'dpo'"),
    ],
)
def test_a_name_that_does_not_fit_is_explained(tmp_path: Path, attributes: str, says: str) -> None:
    child = run(tmp_path, f"class TestToy(ToySuite):\n    {attributes}\n{ENTRY}", "-k", "test_entry")
    assert child.code == 1
    assert says in child.text


@pytest.mark.parametrize("name", ["dpo", "tunekit-trl/dpo", "Tunekit_TRL/dpo"])
def test_the_entry_is_found(tmp_path: Path, name: str) -> None:
    child = run(tmp_path, f"class TestToy(ToySuite):\n    name = {name!r}\n{ENTRY}", "-k", "test_entry")
    assert child.code == 0, child.text


ACME = """
from tunekit.plugins import trainer

@trainer(name="mine", stage="sft", data=("text",))
class Mine:
    def run(self, ctx):
        raise NotImplementedError
"""


@pytest.mark.parametrize(
    ("plugins", "name"),
    [
        ('("acme_code",)', "mine"),
        ('("acme_code:Mine",)', "inline/mine"),
        ("(__import__('acme_code').Mine,)", "mine"),
    ],
)
def test_plugins_may_be_named_by_import_strings(tmp_path: Path, plugins: str, name: str) -> None:
    (tmp_path / "acme_code.py").write_text(ACME)
    source = f"""
class TestToy(ToySuite):
    name = {name!r}
    plugins = {plugins}
    def test_entry(self, entry, session):
        assert (entry.component.name, entry.component.provider) == ("mine", "inline")
        assert session.load(entry.component).__name__ == "Mine"
"""
    child = run(tmp_path, source, "-k", "test_entry")
    assert child.code == 0, child.text


def test_a_test_that_changes_global_state_fails(tmp_path: Path) -> None:
    source = """
class TestToy(ToySuite):
    def test_leaks(self):
        os.environ["ACME_MODE"] = "fast"
    def test_keeps(self, monkeypatch, tmp_path):
        monkeypatch.setenv("ACME_MODE", "slow")
        monkeypatch.chdir(tmp_path)
"""
    child = run(tmp_path, source, "-k", "leaks or keeps")
    assert child.code == 1
    assert child.outcomes["test_keeps"] == "passed" and child.outcomes["test_leaks"] != "passed"
    assert "os.environ ACME_MODE: unset -> fast" in child.text


def test_fixtures_and_options_of_the_plugin(tmp_path: Path) -> None:
    source = """
def test_fixtures(toy_data, recording_events, request):
    assert len(toy_data("text", 3)) == 3
    assert recording_events.events == []
    assert request.config.getoption("--tunekit-update")
"""
    child = run(tmp_path, source, "--tunekit-update")
    assert child.outcomes["test_fixtures"] == "passed", child.text


def test_failures_of_suites_show_values(tmp_path: Path) -> None:
    """Asserts in the kit's own modules are rewritten, though they are installed code."""
    source = """
from tunekit.testing import suite
def test_rewritten():
    import tunekit.testing.recording as module
    assert type(module.__loader__).__name__ == "AssertionRewritingHook"
    assert type(suite.__loader__).__name__ == "AssertionRewritingHook"
"""
    child = run(tmp_path, source)
    assert child.outcomes["test_rewritten"] == "passed", child.text


WITHOUT_PYTEST = """
import sys
sys.modules["pytest"] = None
import tunekit.testing as kit
from tunekit.errors import MissingDependencyError
from tunekit.testing import RecordingEvents, check_plugin, fake_dist, isolated_session, toy_rows, watch_global_state
for name in ("Suite", "PluginSuite", "TrainerSuite", "BenchmarkSuite"):
    try:
        getattr(kit, name)
    except MissingDependencyError as error:
        print(name, "|", error.fix)
print(sorted({"torch", "transformers", "numpy", "pydantic", "_pytest"} & set(sys.modules)))
"""


def test_without_pytest_the_suites_say_what_to_install_and_the_rest_works() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYTEST], capture_output=True, text=True, check=True)
    line = "pip install 'tunekit[testing]'"
    *suites, heavy = done.stdout.splitlines()
    names = ("Suite", "PluginSuite", "TrainerSuite", "BenchmarkSuite")
    assert suites == [f"{name} | {line}" for name in names]
    assert heavy == "[]"


def test_importing_the_kit_is_cheap() -> None:
    code = "import tunekit.testing, sys; print({'torch', 'pytest', 'pydantic', 'pluggy', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
