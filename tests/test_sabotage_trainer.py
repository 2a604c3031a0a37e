"""The suite for trainers finds the bugs that trainers have. Each is seeded into a real trainer of tunekit-trl."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("tunekit_trl")

from tunekit.testing import warm

pytestmark = pytest.mark.slow

BUGS = {
    "mean-of-means": "test_accumulation_1x8_equals_8x1",
    "gradient-times-n": "test_accumulation_1x8_equals_8x1",
    "random-state-lost": "test_killed_and_resumed_equals_uninterrupted",
    "unseeded-order": "test_same_seed_same_losses",
    "padding-id-masked": "test_end_of_text_is_trained[pad-is-eos]",
    "padding-counted": "test_padding_does_not_change_the_loss",
    "no-labels-trained": "test_no_labels_is_an_error",
    "dpo-without-end": "test_end_of_text_is_trained[own-pad]",
    "cancel-ignored": "test_cancel_within_one_step_leaves_a_resumable_checkpoint",
    "writes-outside": "test_nothing_written_outside_the_step_folder",
    "early-checkpoint": "test_events_are_ordered",
    "adapter-ignored": "test_through_an_adapter",
    "hands-on-the-start": "test_artifact_loads_and_generates",
}
"""Bug to the test that must find it."""

HONEST = {
    "honest": sorted({test for bug, test in BUGS.items() if not bug.startswith("dpo")}),
    "dpo-honest": ["test_end_of_text_is_trained[own-pad]"],
}
"""Trainers without a bug, and the tests that they must pass."""

TEACHES = {
    "mean-of-means": "num_items_in_batch",
    "random-state-lost": "random generators",
    "padding-id-masked": "labels[ids == pad]",
    "no-labels-trained": "row 4 has nothing to learn",
    "writes-outside": "training.log",
}
"""Bug to a part of the message that tells its author where to look."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """``(bug, test)`` to the message of the failure, or an empty text; all from one run of pytest."""
    folder = tmp_path_factory.mktemp("sabotage")
    names = {bug: "Test" + bug.title().replace("-", "") for bug in (*HONEST, *BUGS)}
    (folder / "test_them.py").write_text(
        "from tunekit.testing import TrainerSuite\n"
        + "".join(
            f"class {cls}(TrainerSuite):\n    name = {bug!r}\n    plugins = ('sabotage_trainers',)\n"
            for bug, cls in names.items()
        ),
        encoding="utf-8",
    )
    chosen = list(BUGS.items()) + [(name, test) for name, tests in HONEST.items() for test in tests]
    support = Path(__file__).parent / "support"
    command = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    command += ["-p", "tunekit.testing.pytest", "--junitxml", "out.xml"]
    done = warm.run(
        [*command, *(f"test_them.py::{names[bug]}::{test}" for bug, test in chosen)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(support), *filter(None, sys.path)])},
        timeout=600,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = {}
    classes = {cls: bug for bug, cls in names.items()}
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        failures = [*case.iter("failure"), *case.iter("error"), *case.iter("skipped")]
        text = "".join(f"{each.tag}: {each.get('message', '')}\n{each.text or ''}" for each in failures)
        found[classes[case.get("classname", "").rpartition(".")[2]], case.get("name", "")] = text
    return found


@pytest.mark.parametrize(("bug", "test"), BUGS.items())
def test_a_bug_is_found_by_its_test(bug: str, test: str, outcomes: dict[tuple[str, str], str]) -> None:
    message = outcomes[bug, test]
    assert message.startswith(("failure: AssertionError", "failure: Failed")), message or "the test passed"
    assert "usual mistake" in message
    assert TEACHES.get(bug, "") in message


@pytest.mark.parametrize(("name", "tests"), HONEST.items())
def test_the_honest_trainer_passes(name: str, tests: list[str], outcomes: dict[tuple[str, str], str]) -> None:
    assert {test: outcomes[name, test] for test in tests} == dict.fromkeys(tests, "")
