"""QuantizerSuite passes an honest quantizer, and each seeded bug fails the test that is there for it."""

from __future__ import annotations

import pytest
from sabotage_runner import run_suites

from tunekit.testing import QuantizerSuite

BUGS = [
    ("HandsOnTheUnrounded", "test_reload_gives_the_same_logits", "handed on by the step with ctx.keep differ"),
    ("FakeQuantization", "test_size_shrinks_as_declared", "stored in float (fake quantization)"),
    ("KeepsTheOriginal", "test_size_shrinks_as_declared", "the original is stored beside them"),
    ("UnseededCalibration", "test_same_seed_same_weights", "drawn from the global random state"),
    ("DropsTheAdapter", "test_attached_adapter_is_refused", "a model with an attached adapter was quantized"),
    ("RoundsInPlace", "test_input_is_untouched", "the input model in memory was changed: model.layers.0"),
    ("WrongAxis", "test_logits_stay_close", "scales belong to the wrong axis"),
    ("DropsTheTemplate", "test_tokenizer_travels", "chat_template was"),
    ("UntiesTheHead", "test_embeddings_stay_as_they_are", "the input's embeddings are not tied"),
    ("IgnoresCancel", "test_cancel_stops_it", "ctx.cancel is never looked at"),
    ("TakesAnyOption", "test_unknown_option_is_refused", "allows extra fields"),
    ("RoundsTwice", "test_quantizing_twice_is_refused", "was quantized again, from its folder"),
    ("WritesHere", "test_input_is_untouched", "quantize.log"),
]

SOURCE = """
from tunekit.testing import QuantizerSuite


class Base(QuantizerSuite):
    plugins = ("sabotage_quantizers",)

"""


class TestRtn8(QuantizerSuite):
    name = "rtn8"
    plugins = ("sabotage_quantizers",)
    shrinks_to = {"int8": 0.45}
    closeness = {"int8": 0.02}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    classes = "\n".join(f"class Test{bug}(Base):\n    name = {bug.lower()!r}\n" for bug, _, _ in BUGS)
    wanted = [f"Test{bug}::{test}" for bug, test, _ in BUGS]
    return run_suites(tmp_path_factory.mktemp("quantizers"), SOURCE + classes, wanted)


@pytest.mark.parametrize(("bug", "test", "said"), BUGS)
def test_the_bug_is_caught(outcomes: dict[tuple[str, str], str], bug: str, test: str, said: str) -> None:
    outcome = outcomes[f"Test{bug}", test]
    assert outcome not in ("passed", "skipped"), f"{test} did not notice {bug}"
    assert said in outcome, outcome
