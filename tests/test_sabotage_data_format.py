"""DataFormatSuite passes an honest format, and each seeded bug fails the test that is there for it."""

from __future__ import annotations

import pytest
from sabotage_runner import run_suites

from tunekit.data.formats import FORMATS
from tunekit.testing import DataFormatSuite
from tunekit.testing.data_format_suite import BUILT_IN_ROWS

BUGS = [
    ("mutates", "test_converting_changes_nothing", "row.pop"),
    ("shares", "test_converting_changes_nothing", "and is now"),
    ("remembers", "test_a_row_is_converted_on_its_own", "kept from row to row"),
    ("swallows", "test_a_bad_row_is_named", "is bad in 'log' and became"),
    ("swallows", "test_bad_rows_are_left_out_and_counted", "rows became"),
    ("misnames", "test_a_bad_row_is_named", "names the field 'messages'"),
    ("general", "test_unknown_data_stay_unknown", "so general that they fit other people's data"),
    ("taken", "test_it_is_detected", "already read as openai"),
    ("heavy", "test_checking_needs_no_torch", "check() imported numpy"),
]

GOOD = [
    (
        {"log": "ann: Hi\nbo: Hello", "bot": "bo"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    ),
    (
        {"log": "bo: Grüße, bot\nann: 你好", "bot": "ann"},
        {"messages": [{"role": "user", "content": "Grüße, bot"}, {"role": "assistant", "content": "你好"}]},
    ),
]
BAD = [
    ({"log": "nobody said this", "bot": "bo"}, "log"),
    ({"log": 7, "bot": "bo"}, "log"),
    ({"log": "ann: Hi", "bot": "bo"}, "bot"),
    ({"log": "", "bot": "bo"}, "log"),
]

SOURCE = f"""
from tunekit.testing import DataFormatSuite


class Base(DataFormatSuite):
    good = {GOOD!r}
    bad = {BAD!r}

"""


class TestSpeakers(DataFormatSuite):
    name = "inline/speakers"
    plugins = ("sabotage_formats",)
    good = GOOD
    bad = BAD


def test_there_is_a_sample_of_every_format_of_tunekit() -> None:
    assert sorted(BUILT_IN_ROWS) == sorted(form.name for form in FORMATS)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    names = dict.fromkeys(name for name, _, _ in BUGS)
    classes = "\n".join(
        f'class Test{name}(Base):\n    name = {name!r}\n    plugins = ("sabotage_formats:{name.upper()}",)\n'
        + ("    good = [({**row, 'data': '-'}, made) for row, made in Base.good]\n" if name == "general" else "")
        + ("    good = [({**row, 'messages': '-'}, made) for row, made in Base.good]\n" if name == "taken" else "")
        for name in names
    )
    wanted = [f"Test{name}::{test}" for name, test, _ in BUGS]
    return run_suites(tmp_path_factory.mktemp("formats"), SOURCE + classes, wanted)


@pytest.mark.parametrize(("bug", "test", "said"), BUGS)
def test_the_bug_is_caught(outcomes: dict[tuple[str, str], str], bug: str, test: str, said: str) -> None:
    outcome = outcomes[f"Test{bug}", test]
    assert outcome not in ("passed", "skipped"), f"{test} did not notice {bug}"
    assert said in outcome, outcome
