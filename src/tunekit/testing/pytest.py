"""The pytest plugin of the kit: ``pytest_plugins = "tunekit.testing.pytest"`` in ``conftest.py``."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunekit.testing.gaps import gap_problem

if TYPE_CHECKING:
    from tunekit.testing.recording import RecordingEvents

# Failures of the suites show values only if their asserts are rewritten, which must be asked for before they load.
pytest.register_assert_rewrite(
    *(
        module
        for path in sorted(Path(__file__).parent.glob("*.py"))
        if (module := f"tunekit.testing.{path.stem}") not in sys.modules and path.stem not in ("__init__", "pytest")
    )
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the kit."""
    group = parser.getgroup("tunekit")
    group.addoption(
        "--tunekit-update", action="store_true", help="write the snapshots of tunekit's suites in place of comparing"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> None:
    """Refuse a class whose gaps cannot be right, before its tests are collected."""
    if not _is_suite(obj) or not name.startswith("Test"):
        return
    tests = [test for test, value in inspect.getmembers(obj) if test.startswith("test") and callable(value)]
    problem = gap_problem(name, obj.gaps, tests)  # type: ignore[attr-defined]
    if problem:
        raise pytest.Collector.CollectError(problem)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Turn a gap into a strict expected failure."""
    owner = getattr(item, "cls", None)
    if owner is None or not _is_suite(owner):
        return
    gap = owner.gaps.get(item.name) or owner.gaps.get(getattr(item, "originalname", item.name))
    if gap is not None:
        item.add_marker(pytest.mark.xfail(strict=True, raises=gap.raises, reason=gap.reason))


_libraries = 0
"""Modules that were loaded when the garbage collector last was told to pass over what is there."""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Spare the garbage collector the libraries that a test has loaded: they stay, and trainers collect in every run.

    With torch and transformers in memory one collection takes longer than ten optimizer steps of a tiny model.
    """
    global _libraries
    if len(sys.modules) > _libraries + 200:
        _libraries = len(sys.modules)
        gc.collect()
        gc.freeze()


def _is_suite(owner: object) -> bool:
    if not inspect.isclass(owner) or "tunekit.testing.suite" not in sys.modules:
        return False
    return issubclass(owner, sys.modules["tunekit.testing.suite"].Suite)


@pytest.fixture(scope="session")
def tiny_model_pair() -> Any:
    """``(model, tokenizer)`` as ``Pipeline(model=...)`` takes it. Loading copies it, so it may be shared."""
    from tunekit.testing.fakes import tiny_pair

    return tiny_pair()


@pytest.fixture(scope="session")
def toy_data() -> Callable[..., list[dict[str, Any]]]:
    """``toy_data(shape, n=16, seed=0)``: rows of a task that a tiny model learns."""
    from tunekit.testing.fakes import toy_rows

    return toy_rows


@pytest.fixture
def recording_events() -> RecordingEvents:
    """An observer that keeps what it is told: ``run(on_event=recording_events)``."""
    from tunekit.testing.recording import RecordingEvents

    return RecordingEvents()
