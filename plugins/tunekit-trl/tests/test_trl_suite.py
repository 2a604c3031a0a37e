"""The laws of trainers, for both trainers of tunekit-trl, in full and through LoRA."""

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

    # These look at rows and batches, which are made before the adapter plays a part.
    test_padding_does_not_change_the_loss = None
    test_order_in_the_batch_does_not_change_the_loss = None
    test_no_labels_is_an_error = None
    test_end_of_text_is_trained = None
    test_through_an_adapter = None


class TestSftThroughLora(_ThroughLora, TestSft):
    pass


class TestDpoThroughLora(_ThroughLora, TestDpo):
    pass
