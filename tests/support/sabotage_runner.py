"""Runs suites over buggy components in one pytest of their own, and says which tests failed."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from tunekit.testing import warm

SUPPORT = Path(__file__).parent


def run_suites(folder: Path, source: str, wanted: Iterable[str] = ()) -> dict[tuple[str, str], str]:
    """Outcome (``passed``, ``skipped``, or the text of the failure) by class and test name without parameters.

    Args:
        folder: where to write the test file.
        source: its text.
        wanted: ``TestClass::test_name``; empty: all.
    """
    file, report = folder / "test_suites.py", folder / "junit.xml"
    file.write_text(source, encoding="utf-8")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tunekit.testing.pytest"]
    command += ["--noconftest", "--import-mode=importlib", "-c", os.devnull, f"--rootdir={folder}"]
    command += [f"--basetemp={folder / 'tmp'}", f"--junitxml={report}", "-W", "error::pytest.PytestCollectionWarning"]
    command += [f"{file}::{each}" for each in wanted] or [str(file)]
    path = os.pathsep.join(filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH"))))
    done = warm.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=folder, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[tuple[str, str], str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        key = (case.get("classname", "").rpartition(".")[2], case.get("name", "").partition("[")[0])
        bad = [child for child in case if child.tag in ("failure", "error")]
        outcome = "\n".join((child.get("message") or "") + "\n" + (child.text or "") for child in bad)
        if not bad:
            outcome = "skipped" if any(child.tag == "skipped" for child in case) else "passed"
        # Of a parametrised test the worst case counts.
        if found.get(key, "passed") in ("passed", "skipped"):
            found[key] = outcome
    return found
