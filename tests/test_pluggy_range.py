"""Both ends of the range of pluggy that tunekit allows, each in a fresh interpreter that really uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("tests/test_hook_examples.py", "tests/test_registry.py", "tests/test_deprecated.py")
UNREACHABLE = ("NewConnectionError", "ConnectTimeoutError", "Failed to establish", "Name or service not known",
               "Temporary failure in name resolution", "Max retries exceeded", "ReadTimeoutError")  # fmt: skip


def allowed() -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return next(found for text in project["dependencies"] if (found := Requirement(text)).name == "pluggy")


def lowest() -> str:
    return next(part.version for part in allowed().specifier if part.operator == ">=")


def wanted(end: str) -> str:
    return f"pluggy=={lowest()}.0" if end == "lowest" else str(allowed())


@pytest.fixture(scope="module", params=["lowest", "newest"])
def pluggy_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
         "--retries", "1", "--timeout", "10", "--target", folder, wanted(request.param)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode and any(word in done.stderr for word in UNREACHABLE):
        pytest.skip(f"the package registry cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return request.param, folder


def environment(folder: Path) -> dict[str, str]:
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_range_has_two_ends(pluggy_folder: tuple[str, Path]) -> None:
    """What is on the path is what is imported, its version is inside the range, and the newest is newer."""
    end, folder = pluggy_folder
    code = (
        "import importlib.metadata, json, pluggy, tunekit\n"
        "tunekit.Session(autoload=False).plugins()\n"
        "print(json.dumps([pluggy.__version__, importlib.metadata.version('pluggy'), pluggy.__file__]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(folder), capture_output=True, text=True, check=True
    )
    stated, recorded, file = json.loads(done.stdout)
    assert stated == recorded and Path(file).is_relative_to(folder)
    assert allowed().specifier.contains(stated)
    if end == "lowest":
        assert stated == f"{lowest()}.0"
    else:
        assert stated not in (lowest(), f"{lowest()}.0")


def test_the_hooks_behave_alike(pluggy_folder: tuple[str, Path]) -> None:
    _, folder = pluggy_folder
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES],
        env=environment(folder), cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout and " passed" in done.stdout
