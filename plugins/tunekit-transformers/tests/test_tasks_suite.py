"""The laws of trainers, for classes and tags, on a decoder that has the head already."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit import lora
from tunekit.plan import AdapterPlan
from tunekit.testing import TrainerSuite, tiny_pair

COLOURS = ["blue", "green", "grey", "pink", "red", "teal"]
TAGS = ["O", "B-WORD", "I-WORD"]


class _WithHead:
    kind_of_task = ""
    labels: tuple[str, ...] = ()
    # No text is written.
    test_end_of_text_is_trained = None

    @pytest.fixture
    def model(self) -> Any:
        pytest.importorskip("torch")
        from tunekit_transformers.tasks.heads import prepare_padding, with_head

        model, tokenizer = tiny_pair()
        prepare_padding(model, tokenizer)
        # Without it the head of a tagger has dropout; the suite sets it where dropout is looked at.
        model.config.hidden_dropout = 0.0
        return with_head(model, self.kind_of_task, self.labels, 0)[0], tokenizer

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        # A row alone shows one class only.
        return {"labels": list(self.labels)}


class TestClassification(_WithHead, TrainerSuite):
    name = "tunekit-transformers/classification"
    stage = "post_pretrain"
    steps_after_cancel = 0
    kind_of_task = "classification"
    labels = tuple(COLOURS)


class TestNer(_WithHead, TrainerSuite):
    name = "tunekit-transformers/ner"
    stage = "post_pretrain"
    steps_after_cancel = 0
    kind_of_task = "ner"
    labels = tuple(TAGS)
    # The bias of the head is trained in full beside LoRA; test_tasks_training looks at adapters.
    test_through_an_adapter = None


class TestClassificationThroughLora(TestClassification):
    # A cancel shows that checkpoints with adapter and head can be resumed.
    test_padding_does_not_change_the_loss = None
    test_order_in_the_batch_does_not_change_the_loss = None
    test_accumulation_1x8_equals_8x1 = None
    test_no_labels_is_an_error = None
    test_bad_option_is_refused_before_anything_runs = None
    test_killed_and_resumed_equals_uninterrupted = None
    test_through_an_adapter = None
    test_same_seed_same_losses = None
    test_another_seed_gives_other_losses = None
    test_artifact_loads_and_generates = None
    test_nothing_written_outside_the_step_folder = None

    @pytest.fixture
    def adapter(self) -> AdapterPlan:
        return lora(r=4)
