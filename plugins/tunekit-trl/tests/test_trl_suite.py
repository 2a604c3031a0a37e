"""The laws of trainers, for both trainers of tunekit-trl."""

from __future__ import annotations

from tunekit.testing import TrainerSuite


class TestSft(TrainerSuite):
    name = "tunekit-trl/sft"
    steps_after_cancel = 0


class TestDpo(TrainerSuite):
    name = "tunekit-trl/dpo"
    steps_after_cancel = 0
