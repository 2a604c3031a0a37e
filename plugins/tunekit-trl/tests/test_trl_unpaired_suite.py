"""The laws of trainers, for those that learn from judged answers."""

from __future__ import annotations

import pytest

from tunekit import lora
from tunekit.plan import AdapterPlan
from tunekit.testing import TrainerSuite


class TestKto(TrainerSuite):
    name = "tunekit-trl/kto"
    steps_after_cancel = 0
    # One row alone is refused: it has no other to be compared with. test_trl_unpaired_oracles pads instead.
    test_padding_does_not_change_the_loss = None


class TestBcoThroughLora(TrainerSuite):
    name = "tunekit-trl/bco"
    steps_after_cancel = 0
    test_padding_does_not_change_the_loss = None
    # As for kto: rows and batches are the same.
    test_order_in_the_batch_does_not_change_the_loss = None
    test_no_labels_is_an_error = None
    test_end_of_text_is_trained = None
    test_same_seed_same_losses = None
    test_through_an_adapter = None

    @pytest.fixture
    def adapter(self) -> AdapterPlan:
        return lora(r=4)
