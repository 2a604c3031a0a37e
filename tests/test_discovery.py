"""What it costs to have three hundred plugins installed. Real distributions, fresh interpreters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunekit.testing import fake_dist

COUNT = 300
LIMIT = 0.25
"""Seconds of CPU time that all of them may cost together."""
ROUNDS = 5

HEAVY_SIBLING = (
    '"""What a trainer would import. Nobody may ask for it before a step runs."""\n\nWEIGHTS = list(range(10))\n'
)

LIST = """
import json, resource, sys
from tunekit import Session
session = Session()
providers = [record.provider for record in session.plugins() if record.state == "loaded"]
components = [entry.component.id for entry in session.components()]
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "cpu": used.ru_utime + used.ru_stime,
    "providers": providers,
    "components": components,
    "modules": sorted(name for name in sys.modules if name.startswith("many_")),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for number in range(COUNT):
        fake_dist(folder, f"many-{number:03d}", component=f"toy{number:03d}", files={"heavy.py": HEAVY_SIBLING})
    return folder


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a bytecode cache of its own, as an installed package has one."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONDONTWRITEBYTECODE", "COVERAGE_PROCESS_START", "TUNEKIT_DISABLE_PLUGINS")
    }
    return {**kept, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pycache"))}


def listing(env: dict[str, str], *folders: Path) -> dict[str, Any]:
    """What an interpreter lists that has the distributions of ``folders`` installed, and its CPU seconds."""
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", LIST],
        env={**env, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_of_them_are_found_and_only_their_record_modules_imported(site: Path, env: dict[str, str]) -> None:
    found = listing(env, site)
    names = [f"many-{number:03d}" for number in range(COUNT)]
    assert [provider for provider in found["providers"] if provider.startswith("many-")] == names
    assert {f"many-{number:03d}/toy{number:03d}" for number in range(COUNT)} <= set(found["components"])
    packages = [f"many_{number:03d}" for number in range(COUNT)]
    assert found["modules"] == sorted([*packages, *(f"{package}.plugin" for package in packages)])


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_they_cost_less_than_a_quarter_of_a_second(site: Path, env: dict[str, str], tmp_path: Path) -> None:
    listing(env, site), listing(env, tmp_path)  # fill the bytecode cache
    best = {"with": 9.0, "without": 9.0}
    for number in range(4 * ROUNDS):
        best["with"] = min(best["with"], listing(env, site)["cpu"])
        best["without"] = min(best["without"], listing(env, tmp_path)["cpu"])
        if number >= ROUNDS and best["with"] - best["without"] < LIMIT:
            break
    assert best["with"] - best["without"] < LIMIT, best


def test_the_script_compares_with_plain_pluggy() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "discovery.py"
    done = subprocess.run(
        [sys.executable, str(script), "2", "3", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["plugins", "tunekit", "pluggy", "ratio"]
    assert [row.split()[0] for row in rows] == ["2", "3"]
