"""Each bug seeded into LoRA fails the test of AdapterSuite that is there for it. tunekit-peft's own tests pass it."""

from __future__ import annotations

import pytest
from sabotage_runner import run_suites

BUGS = [
    ("NonZeroStart", "test_identity_at_start", "both factors of the update are drawn at random"),
    ("ForgetsTheScale", "test_merged_equals_attached", "the scale (alpha / r) is left out"),
    ("UntiesEmbeddings", "test_embeddings_survive_merge_and_reload", "config says tied=True and the tensors"),
    ("TrainsTheBase", "test_only_few_parameters_train", "base weights require a gradient: base_model.model"),
    ("TrainsTheBase", "test_training_leaves_the_base_alone", "changed base weights: model.layers.0"),
    ("StaysOffAfterAnError", "test_detached_restores_the_adapter", "not in a finally clause"),
    ("FreezesAfterDetached", "test_detached_restores_the_adapter", "requires_grad is another one"),
    ("SaveDropsALayer", "test_saved_adapter_loads_without_tunekit", "a layer is missing in the file"),
    ("SavesEverything", "test_saved_adapter_loads_without_tunekit", "the state of the whole model is saved"),
    ("UnseededStart", "test_start_depends_on_the_seed_alone", "global random state"),
    ("KeepsWrappers", "test_merge_leaves_a_plain_model", "wrapper modules stay around the layers"),
    ("MergesInHalfPrecision", "test_merge_is_as_exact_as_the_bases_type", "the sum rounded once"),
    ("HalfAdapter", "test_merge_is_as_exact_as_the_bases_type", "AdamW updates are lost"),
    ("DropoutInEvaluation", "test_dropout_is_off_in_evaluation", "functional dropout"),
]

SOURCE = """
from tunekit.testing import AdapterSuite


class Base(AdapterSuite):
    plugins = ("sabotage_adapters",)

"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    names = dict.fromkeys(bug for bug, _, _ in BUGS)
    classes = "\n".join(f"class Test{bug}(Base):\n    name = {bug.lower()!r}\n" for bug in names)
    wanted = [f"Test{bug}::{test}" for bug, test, _ in BUGS]
    return run_suites(tmp_path_factory.mktemp("adapters"), SOURCE + classes, wanted)


@pytest.mark.parametrize(("bug", "test", "said"), BUGS)
def test_the_bug_is_caught(outcomes: dict[tuple[str, str], str], bug: str, test: str, said: str) -> None:
    outcome = outcomes[f"Test{bug}", test]
    assert outcome not in ("passed", "skipped"), f"{test} did not notice {bug}"
    assert said in outcome, outcome
