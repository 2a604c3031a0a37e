"""ExporterSuite passes an honest exporter, and each seeded bug fails the test that is there for it."""

from __future__ import annotations

import pytest
from sabotage_runner import run_suites

from tunekit.testing import ExporterSuite

BUGS = [
    ("DropsTheTemplate", "test_chat_template_travels", "chat_template was"),
    ("Timestamps", "test_same_files_twice", "differ in export/model.safetensors"),
    ("NamesItsFolder", "test_same_files_twice", "differ in export/export.json"),
    ("HalvesInPlace", "test_input_is_untouched", "model.half() and model.to(...) work in place"),
    ("LosesEos", "test_eos_and_bos_travel", "eos_token was '<|im_end|>' and is None"),
    ("LosesGenerationConfig", "test_eos_and_bos_travel", "ends at token None"),
    ("SwapsRows", "test_reload_gives_the_models_logits", "rows are permuted for another layout"),
    ("ForgetsTheHead", "test_reload_gives_the_models_logits", "with untied embeddings"),
    ("IgnoresCancel", "test_cancel_leaves_nothing_half_written", "ctx.cancel is never looked at"),
    ("KeepsLeftovers", "test_cancel_leaves_nothing_half_written", "appended to"),
    ("WritesHere", "test_writes_below_its_folder", "export.log"),
    ("ClaimsAModel", "test_says_what_it_wrote", "kind 'report' without a model"),
    ("TakesAnyOption", "test_wrong_options_are_refused", "allows extra fields"),
]

SOURCE = """
from tunekit.testing import ExporterSuite


class Base(ExporterSuite):
    plugins = ("sabotage_exporters",)
    tolerance = 2e-3

"""


class TestHalf(ExporterSuite):
    name = "half"
    plugins = ("sabotage_exporters",)
    tolerance = 2e-3
    bad_options = ({"dtype": "int3"},)


class TestFull(ExporterSuite):
    """The same without rounding: the logits are the model's own."""

    name = "half"
    plugins = ("sabotage_exporters",)
    options = {"dtype": "float32"}
    tolerance = 0.0


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    classes = "\n".join(f"class Test{bug}(Base):\n    name = {bug.lower()!r}\n" for bug, _, _ in BUGS)
    wanted = [f"Test{bug}::{test}" for bug, test, _ in BUGS]
    return run_suites(tmp_path_factory.mktemp("exporters"), SOURCE + classes, wanted)


@pytest.mark.parametrize(("bug", "test", "said"), BUGS)
def test_the_bug_is_caught(outcomes: dict[tuple[str, str], str], bug: str, test: str, said: str) -> None:
    outcome = outcomes[f"Test{bug}", test]
    assert outcome not in ("passed", "skipped"), f"{test} did not notice {bug}"
    assert said in outcome, outcome
