"""The laws of trainers, for those that learn from their own completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunekit.testing import TrainerSuite


class TestGrpo(TrainerSuite):
    name = "tunekit-trl/grpo"
    steps_after_cancel = 0

    # What is learned is written by the model itself: rows have neither labels nor ends.
    test_no_labels_is_an_error = None
    test_end_of_text_is_trained = None

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {
            "reward": {"name": "length", "unit": "characters", "target": 40},
            "num_generations": 4,
            "max_new_tokens": 8,
            "samples": 0,
        }
