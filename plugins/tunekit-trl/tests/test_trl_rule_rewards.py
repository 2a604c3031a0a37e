"""Rewards that check by rule: final answers, forms, lengths. No torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from tunekit.errors import StepError
from tunekit_trl.rewards.answers import boxed, final_answer, last_number, wanted_answer
from tunekit_trl.rewards.numbers import same_answer
from tunekit_trl.rewards.options import ExactMatchOptions, FormatOptions, LengthOptions
from tunekit_trl.rewards.rules import ExactMatch, Format, Length

RIGHT_ANSWERS = [
    # the completion is the answer
    ("Paris", "Paris", True),
    ("Paris.", "paris", True),
    ('"Paris"', "Paris", True),
    ("yes", "yes", True),
    ("Yes, it does.", "yes", True),
    ("No.", "yes", False),
    ("No idea", "no", False),
    (r"\sqrt{2}", r"\sqrt{2}", True),
    ("(1, 2)", "(1, 2)", True),
    ("x^2", "x^2", True),
    ("7:30", "7:30", True),
    ("2024-05-06", "2024-05-06", True),
    ("1 200 000", "1 200 000", True),
    ("1 200 000", "1200000", True),
    ("It is 1 200 000.", "1200000", True),
    ("It is 1 200 000.", "0", False),
    ("(B)", "B", True),
    ("B) Paris", "B", True),
    ("A", "B", False),
    ("", "4", False),
    ("", "Paris", False),
    # a number inside something else is no answer
    (r"\sqrt{2}", "2", False),
    (r"2\sqrt{2}", "2", False),
    (r"\frac{1}{2}\pi", "1/2", False),
    ("x^2", "2", False),
    ("3x", "3", False),
    ("3\u03c0", "3", False),
    ("x^2 + 3", "3", False),
    ("5 - 3", "-3", False),
    ("5 - 3", "3", False),
    ("3-5", "5", False),
    ("(1, 2)", "2", False),
    ("f(2)", "2", False),
    ("The roots are 1 and 2.", "2", False),
    ("At 7:30", "30", False),
    ("On 2024-05-06", "6", False),
    ("es sind 3,5", "5", False),
    (r"\frac{\sqrt{3}}{2}", "2", False),
    ("The answer is \u00b13", "3", False),
    (r"The answer is \pm 3", "3", False),
    ("x > 3", "3", False),
    (r"\boxed{x \geq 3}", "3", False),
    (r"\log_2 8", "8", False),
    (r"\boxed{\sin 30}", "30", False),
    ("5 mod 3", "3", False),
    ("x=2 or x=3", "3", False),
    ("2 x", "2", False),
    (r"\boxed{11_{2}}", "11_2", True),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    # the last number
    ("The area is 25 cm^2", "25", True),
    ("That is -> 4", "4", True),
    ("<b>4</b>", "4", True),
    ("Two and two: 4", "4", True),
    ("She has 5 - 3 = 2 apples left.", "2", True),
    ("So it is **42**!", "42", True),
    ("In 2024, 5 people came.", "5", True),
    ("It is $18.", "18", True),
    ("That makes (in all) 12 km", "12", True),
    (r"We get $x = \frac{1}{2}$.", "0.5", True),
    (r"So it takes \(12\) hours.", "12", True),
    ("Result of it: -7", "-7", True),
    ("First 3.\n- 4", "4", True),
    ("Paris has 2 airports", "Paris", False),
    # tags and thoughts
    ("<answer>Paris</answer>", "Paris", True),
    ("<think>Is it 5? No, 4.</think>\n<answer>4</answer>", "4", True),
    ("<think>4</think><answer>5</answer>", "4", False),
    ("<think>The answer is 4. Or", "4", False),
    ("<think>so</think> 4", "4", True),
    (r"<answer>\boxed{\frac12}</answer>", "0.5", True),
    ("<answer>The answer is B.</answer>", "B", True),
    ("<answer>4</answer><answer>5</answer>", "4", False),
    # boxed and hashes
    (r"so \boxed{\frac{1}{2}} it is, 3 times", "1/2", True),
    (r"\boxed{18\text{ dollars}}", "18", True),
    (r"\boxed{x=5}", "5", True),
    (r"\boxed{2x}", "2", False),
    (r"\boxed{\text{(B)}}", "B", True),
    (r"\boxed{[0, 1)}", r"\left[0,1\right)", True),
    (r"\boxed{(0, 1)}", "[0, 1)", False),
    (r"\boxed{\{2, 1\}}", r"\{1,2\}", True),
    (r"\boxed{(2, 1)}", "(1, 2)", False),
    (r"\boxed{(0.5, 3)}", r"\left(\frac{1}{2}, 3\right)", True),
    (r"\boxed{x \in [0,\infty)}", r"[0,\infty)", True),
    (r"\boxed{\dfrac{\sqrt{3}}{2}}", r"\frac{\sqrt3}{2}", True),
    (r"\boxed{2\pi}", r"2 \pi", True),
    (r"\boxed{4}. The answer is 5.", "4", True),
    ("9 * 2 = 18\n#### 18", "18", True),
    ("#### 72 clips", "72", True),
    ("#### 17\n#### 18", "17", False),
    # said
    ("The answer is 3 (not 4)", "3", True),
    ("The answer is 3 (not 4)", "4", False),
    ("The answer is 3, because 4 is bad", "3", True),
    ("The answer is 3, because 4 is bad", "4", False),
    ("The answer is 3 or 4", "3", False),
    ("The answer is 3 or 4", "4", False),
    ("The answer is 3, 4", "3", False),
    ("The answer is not 4.", "Paris", False),
    ("The answer is 12. I checked it 3 times.", "12", True),
    ("The final answer is: $1,200.50.", "1200.5", True),
    ("**Answer:** 42", "42", True),
    ("The answer to the first question is 42 apples.", "42", True),
    ("The answer is 9 * 2 = 18 dollars.", "18", True),
    ("The answer is 9 * 2 = 18 dollars.", "9", False),
    ("The answer is 3 times 4", "3", False),
    ("The answer is about 12 apples.", "12", True),
    ("The answer is 3 x", "3", False),
    ("The answer is Paris, because it is large.", "Paris", True),
    ("The answer is St. Louis.", "St. Louis", True),
    ("The answer is blue.", "red", False),
    ("The answer is (B), since 3 > 2.", "B", True),
    ("The correct option is C.", "C", True),
    ("Answer: B) Paris", "B", True),
    ("The answer is a car", "A", False),
    (r"The answer is \(\frac{3}{4}\) of the cake.", "0.75", True),
    ("The answer is 3 1/2 cups.", "3.5", True),
    (r"The answer is $3\sqrt{2}$ meters.", r"3\sqrt{2}", True),
    (r"The answer is $3\sqrt{2}$.", "3", False),
    ("The answer is:\n\\[\n\\frac{3}{4}\n\\]", "3/4", True),
    ("The answer is (1, 2) since it must be.", "(1,2)", True),
    # choices and lines of their own
    ("I think (B) fits, as 2 > 1.", "B", True),
    ("Either (A) or (B).", "B", False),
    ("It is the capital:\nParis", "Paris", True),
    ("It rains.\nNo, it does not.", "no", True),
]


@pytest.mark.parametrize(("completion", "right", "good"), RIGHT_ANSWERS)
def test_right_answers(completion: str, right: str, good: bool) -> None:
    """A number is compared with a number and a text with a text; an expression is not the number inside it."""
    message = [{"role": "assistant", "content": completion}]
    assert ExactMatch(ExactMatchOptions())([""] * 2, [completion, message], answer=[right] * 2) == [float(good)] * 2


@pytest.mark.parametrize(
    ("column", "answer"),
    [
        ("6 * 7 = 42\n#### 42", "42"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        ("Six times seven.\nThe answer is: 42", "42"),
        ("<think>hm</think><answer>Paris</answer>", "Paris"),
        ("Paris", "Paris"),
    ],
)
def test_worked_solutions_in_the_column(column: str, answer: str) -> None:
    assert wanted_answer(column) == answer


@pytest.mark.parametrize(
    ("text", "extract", "answer"),
    [
        ("#### 41\nNo, once more.\n#### 42", "gsm8k", "42"),
        ("It is 42.", "gsm8k", None),
        (r"\boxed{1} then \boxed{2", "boxed", "1"),
        (r"\boxed{\{1,2\}}", "boxed", r"\{1,2\}"),
        ("no numbers here", "last-number", None),
        ("from 3.5 to -2", "last-number", "-2"),
        ("in 2024, v1.2 sold 1,000,000.", "last-number", "1,000,000"),
        (r"so we get \frac{\sqrt{3}}{2}", "last-number", r"\frac{\sqrt{3}}{2}"),
        (r"so we get \sqrt{2}", "last-number", None),
        ("on the 2nd day 4, on the 3rd", "last-number", "4"),
        ("  all of it ", "text", "all of it"),
        ("", "text", None),
    ],
)
def test_final_answers(text: str, extract: str, answer: str | None) -> None:
    assert final_answer(text, extract) == answer


@pytest.mark.parametrize(
    ("given", "right", "same"),
    [
        ("1,200", "1200", True),
        ("1200.0", "1200", True),
        ("$18", "18", True),
        ("18 dollars", "18", True),
        ("50%", "50", True),
        (r"50\%", "50", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\dfrac12", "1/2", True),
        ("1/3", "0.333", False),
        ("-7", "7", False),
        ("\u22127", "-7", True),
        ("x = 5", "5", True),
        ("5.", "5", True),
        (r"\text{Blue}", "blue", True),
        (r"90^\circ", "90", True),
        (r"\sqrt2", r"\sqrt{2}", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        ("12", "1,2", False),
        ("1e3", "1000", True),
        ("nan", "5", False),
        ("1/0", "5", False),
        (r"3\frac{1}{2}", "3.5", True),
        (r"3\frac{1}{2}", "15.5", False),
        ("3 1/2", "3.5", True),
        ("3 1/2", "15.5", False),
        (r"-3\frac12", "-7/2", True),
        (r"\frac{1}{2}3", "1/23", False),
        ("5 6", "56", False),
        ("$5$ $6$", "56", False),
        (r"5\ 6", "56", False),
        ("1 2 3", "123", False),
        ("5  6", "5 6", True),
        ("(1,234)", "1234", False),
        ("(1,234)", "(1, 234)", True),
        ("1, 234", "1234", False),
        (r"10,\!000", "10000", True),
        (r"10{,}000", "10000", True),
        ("**42**", "42", True),
        ("**42**.", "42", True),
        (r"\(\frac{3}{4}\)", "3/4", True),
        (r"\[ 0.75 \]", "3/4", True),
        ("(B)", "B", True),
        (r"\textbf{(B)}", "b", True),
        ("(AB)", "AB", False),
        ("1 200 000", "1200000", True),
        ("1, 234", "1,234", False),
        (r"3\text{ cm}^2", "3", True),
        (r"x \leq 3", r"x\le3", True),
        ("\u221a2", r"\sqrt{2}", True),
        ("x\u00b2", "x^{2}", True),
        ("1 and 2", "1, 2", True),
        ("1/2, 3", "0.5, 3", True),
        ("(1,2)+(3,4)", "(1,2)+(3,4)", True),
        ("1, 2, 3", "1, 2", False),
        ("", "", False),
    ],
)
def test_same_answers(given: str, right: str, same: bool) -> None:
    assert same_answer(given, right) is same


def test_numbers_with_endless_digits_take_no_time() -> None:
    """What a model writes may be anything: 10 to the power of a billion is not computed."""
    assert same_answer("1e999999999", "5") is False
    assert same_answer("9" * 100_000, "9" * 100_000) is True
    assert last_number("1" * 5000 + " 2") == "2"
    assert boxed(r"\boxed{" * 2000) is None


def test_tolerance_is_a_share_of_the_right_number() -> None:
    assert same_answer("3.14", "3.1416", 0.001) and not same_answer("3.13", "3.1416", 0.001)


def test_gsm8ks_own_solutions_are_right(shared_data: Path) -> None:
    """Each solution ends in its answer; each is wrong for the next problem's unless they are equal."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()[:400]
    answers = [json.loads(line)["answer"] for line in lines]
    reward = ExactMatch(ExactMatchOptions())
    assert reward([""] * len(answers), answers, answer=answers) == [1.0] * len(answers)
    plain = [f"So the answer is {text.rpartition('####')[2].strip()}." for text in answers]
    assert reward([""] * len(answers), plain, answer=answers) == [1.0] * len(answers)
    shifted = answers[1:] + answers[:1]
    finals = [text.rpartition("####")[2].strip() for text in answers]
    equal = [float(a == b) for a, b in zip(finals, finals[1:] + finals[:1], strict=True)]
    assert reward([""] * len(answers), answers, answer=shifted) == equal


def test_exact_match_takes_messages_lists_and_rows_without_an_answer() -> None:
    reward = ExactMatch(ExactMatchOptions(answer="solution", right=2.0, wrong=-1.0))
    message = [{"role": "assistant", "content": "It is 4"}]
    scores = reward([None] * 4, [message, "5", "nothing", "7"], solution=[4, ["4", "5"], "6", None])
    assert scores == [2.0, 2.0, -1.0, None]
    with pytest.raises(StepError, match="needs a column 'solution'") as caught:
        reward(["a"], ["b"], solutions=["4"], finished=[True])
    assert caught.value.suggestions == ("solutions",)


def test_format_matches_all_of_a_completion() -> None:
    reward = Format(FormatOptions())
    good = "<think>\nhm\n</think>\n<answer>4</answer>\n"
    assert reward([""] * 3, [good, good + "more", "4"]) == [1.0, 0.0, 0.0]
    starts = Format(FormatOptions(pattern=r"\d+", match="start", right=0.5, wrong=-0.5))
    assert starts([""] * 2, [" 12 b", "b 12"]) == [0.5, -0.5]
    with pytest.raises(ValidationError, match="no regular expression"):
        FormatOptions(pattern="(")


def test_length_falls_in_a_straight_line() -> None:
    """DAPO's equation 13: 0 up to max - buffer, -1 from max on."""
    reward = Length(LengthOptions(max=10, buffer=4))
    ids = [[0] * length for length in (1, 6, 7, 8, 10, 11)]
    assert reward([""] * 6, [""] * 6, completion_ids=ids) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    words = Length(LengthOptions(unit="words", target=4))
    assert words([""] * 4, ["a b c d", "a b c", "a b c d e f", " ".join("a" * 99)]) == [0.0, -0.25, -0.5, -1.0]
    with pytest.raises(StepError, match="counts tokens"):
        reward([""], ["x"])
    with pytest.raises(StepError, match="knows no length"):
        Length(LengthOptions())([""], ["x"], completion_ids=[[1]])
    for options, limit in (({}, None), ({"buffer": 101}, 100)):
        ctx: Any = SimpleNamespace(options=SimpleNamespace(**({"max_new_tokens": limit} if limit else {})))
        with pytest.raises(StepError) as caught:
            Length(LengthOptions(**options)).start(ctx)
        assert caught.value.code == "reward-options"
    limited = Length(LengthOptions())
    limited.start(SimpleNamespace(options=SimpleNamespace(max_new_tokens=100)))  # type: ignore[arg-type]
    ids = [[0] * length for length in (80, 90, 100)]
    assert limited([""] * 3, [""] * 3, completion_ids=ids) == [0.0, -0.5, -1.0]


@pytest.mark.parametrize(
    "wrong", [{"unit": "words"}, {"target": 3, "max": 4}, {"target": 3, "buffer": 1}, {"max": 3, "buffer": 4}]
)
def test_length_has_one_aim(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LengthOptions(**wrong)


def test_rewards_import_no_torch() -> None:
    code = "import sys, tunekit_trl.rewards.rules, tunekit_trl.online_options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
