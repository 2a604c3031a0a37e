"""The laws of trainers, for the trainers of tunekit-trl on given texts, in full and through LoRA."""

from __future__ import annotations

import pytest

from tunekit import lora
from tunekit.plan import AdapterPlan
from tunekit.testing import TrainerSuite


class TestSft(TrainerSuite):
    name = "tunekit-trl/sft"
    steps_after_cancel = 0


class TestDpo(TrainerSuite):
    name = "tunekit-trl/dpo"
    steps_after_cancel = 0


class _ThroughLora:
    @pytest.fixture
    def adapter(self) -> AdapterPlan:
        return lora(r=4)

    # Rows and batches are made before the adapter plays a part; a cancel shows that its checkpoints can be resumed.
    test_padding_does_not_change_the_loss = None
    test_order_in_the_batch_does_not_change_the_loss = None
    test_no_labels_is_an_error = None
    test_end_of_text_is_trained = None
    test_bad_option_is_refused_before_anything_runs = None
    test_killed_and_resumed_equals_uninterrupted = None
    test_through_an_adapter = None


class TestSftThroughLora(_ThroughLora, TestSft):
    pass


class TestDpoThroughLora(_ThroughLora, TestDpo):
    pass


class TestOrpo(TrainerSuite):
    name = "tunekit-trl/orpo"
    steps_after_cancel = 0
    # A mean over tokens plus a mean over pairs: test_trl_pair_oracles compares padded and unpadded batches instead.
    test_padding_does_not_change_the_loss = None


class TestCpoThroughLora(_ThroughLora, TrainerSuite):
    name = "tunekit-trl/cpo"
    steps_after_cancel = 0


class TestSimpoThroughLora(_ThroughLora, TrainerSuite):
    name = "tunekit-trl/simpo"
    steps_after_cancel = 0
