"""The laws of trainers, for those that learn from judged answers."""

from __future__ import annotations

import pytest

from tunekit import lora
from tunekit.plan import AdapterPlan
from tunekit.testing import TrainerSuite


class TestKto(TrainerSuite):
    name = "tunekit-trl/kto"
    steps_after_cancel = 0


class TestBcoThroughLora(TrainerSuite):
    name = "tunekit-trl/bco"
    steps_after_cancel = 0

    @pytest.fixture
    def adapter(self) -> AdapterPlan:
        return lora(r=4)
