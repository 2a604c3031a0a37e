"""BenchmarkSuite passes the real benchmarks, and each bug seeded into them fails the test that is there for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sabotage_runner import run_suites

BUGS = [
    ("MmluLeak", "", "test_the_prompt_does_not_hold_the_answer", "the field 'answer' decides what is right"),
    ("Gsm8kLeak", "", "test_the_prompt_does_not_hold_the_answer", "the field 'target' decides what is right"),
    ("Gsm8kLimitedByAnswer", "", "test_the_prompt_does_not_hold_the_answer", "the field 'target' decides"),
    ("Gsm8kContaminated", "", "test_the_prompt_does_not_hold_the_answer", "stands among its own worked examples"),
    ("MmluShuffled", "", "test_rows_are_the_same_twice", "examples drawn at random"),
    ("MmluRandomShots", "", "test_rows_are_the_same_twice", "its request"),
    ("MmluOrderOfASet", "", "test_rows_are_the_same_twice", "another process has other rows"),
    ("MmluSampled", "", "test_limit_takes_the_first", "a random sample"),
    ("MmluSilentCut", "", "test_truncation_is_reported", "without truncated=response.truncated"),
    ("Gsm8kSubstring", "", "test_a_near_miss_is_wrong", "`target in text`"),
    ("Gsm8kEmptyIsRight", "", "test_judge_is_pure_and_total", "'' is judged right"),
    ("Gsm8kRaises", "", "test_judge_is_pure_and_total", "judge raised ValueError"),
    ("MmluShifted", "", "test_a_constant_model_scores_the_known_share", "labels shifted by one"),
    ("Gsm8kStopsTooSoon", "", "test_a_perfect_oracle_scores_one", "a stop string leaves"),
    ("MmluTypo", "", "test_prompts_match_the_snapshot", "--tunekit-update"),
    ("MmluSkipsBadRows", "", "test_bad_data_names_file_row_and_field", "read without complaint"),
    ("MmluWrongShots", "", "test_the_protocol_says_how", "protocol() says 0 shots"),
    ("MmluBrokenParts", "", "test_parts_join_to_the_context", "parts joined are not the context"),
    ("HonestMmlu", "EvaluatePadded", "test_batch_size_does_not_change_scores", "padding without an attention mask"),
    ("HonestGsm8k", "EvaluatePadded", "test_batch_size_does_not_change_scores", "in a batch of 8"),
    ("HonestMmlu", "EvaluateMacro", "test_the_score_is_the_mean_of_its_rows", "(macro)"),
    ("HonestMmlu", "EvaluateWrongError", "test_the_score_is_the_mean_of_its_rows", "stderr is"),
    ("HonestMmlu", "EvaluateUncounted", "test_truncation_is_reported", "truncated_rows=0"),
    ("HonestGsm8k", "EvaluateCutsLeft", "test_truncation_is_reported", "not the question with fewer examples"),
]

SNAPSHOTS = Path(__file__).parents[1] / "plugins" / "tunekit-evals" / "tests" / "snapshots"

SOURCE = """
from pathlib import Path

from tunekit.testing import BenchmarkSuite

DATA = Path(__file__).parent / "data"


class Mmlu(BenchmarkSuite):
    plugins = ("sabotage_benchmarks",)
    source = DATA / "mmlu"
    constant_share = {share!r}


class Gsm8k(BenchmarkSuite):
    plugins = ("sabotage_benchmarks",)
    constant_share = 1 / 20

"""


def _class(benchmark: str, evaluator: str) -> str:
    base = "Gsm8k" if "Gsm8k" in benchmark else "Mmlu"
    line = f"class Test{benchmark}{evaluator}({base}):\n    name = {benchmark.lower()!r}\n"
    return line + (f"    evaluator = {('inline/' + evaluator.lower())!r}\n" if evaluator else "")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """MMLU is asked three questions of its first subject only: equal letters and equal groups would hide bugs."""
    from tunekit_evals.files import SAMPLE

    folder = tmp_path_factory.mktemp("benchmarks")
    shutil.copytree(SAMPLE / "mmlu", folder / "data" / "mmlu")
    file = folder / "data" / "mmlu" / "test" / "arithmetic_test.csv"
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:3]), "utf-8")
    letters = [line[-1] for path in file.parent.iterdir() for line in path.read_text("utf-8").splitlines()]
    (folder / "snapshots").mkdir()
    for name in ("mmlu", "gsm8k"):
        text = (SNAPSHOTS / f"tunekit-evals__{name}.json").read_text("utf-8")
        for benchmark in (f"honest{name}", f"{name}typo"):
            path = folder / "snapshots" / f"{benchmark}.json"
            path.write_text(text.replace(f'"tunekit-evals/{name}"', f'"{benchmark}"'), "utf-8")

    used = dict.fromkeys((benchmark, evaluator) for benchmark, evaluator, _, _ in BUGS)
    honest = [("HonestMmlu", ""), ("HonestGsm8k", "")]
    source = SOURCE.format(share=letters.count("A") / len(letters))
    source += "\n\n".join(_class(*each) for each in dict.fromkeys([*used, *honest]))
    wanted = [f"Test{benchmark}{evaluator}::{test}" for benchmark, evaluator, test, _ in BUGS]
    wanted += [f"Test{name}::{test}" for name, _ in honest for test in dict.fromkeys(test for _, _, test, _ in BUGS)]
    return run_suites(folder, source, wanted)


@pytest.mark.parametrize(("benchmark", "evaluator", "test", "said"), BUGS)
def test_the_bug_is_caught(
    outcomes: dict[tuple[str, str], str], benchmark: str, evaluator: str, test: str, said: str
) -> None:
    outcome = outcomes[f"Test{benchmark}{evaluator}", test]
    assert outcome not in ("passed", "skipped"), f"{test} did not notice {benchmark} {evaluator}"
    assert said in outcome, outcome


@pytest.mark.parametrize("benchmark", ["HonestMmlu", "HonestGsm8k"])
def test_the_honest_one_passes_the_same_tests(outcomes: dict[tuple[str, str], str], benchmark: str) -> None:
    mine = {test: outcome for (name, test), outcome in outcomes.items() if name == f"Test{benchmark}"}
    assert set(mine) == {test for _, _, test, _ in BUGS}
    assert set(mine.values()) == {"passed"}, mine
