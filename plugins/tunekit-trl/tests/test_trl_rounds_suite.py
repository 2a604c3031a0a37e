"""The laws of trainers, for preference optimisation in rounds."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.testing import TrainerSuite


class TestIterativeDpo(TrainerSuite):
    name = "tunekit-trl/iterative-dpo"
    # A cancel is seen while pairs are written, too.
    steps_after_cancel = 1

    # What is learned is written by the model itself: rows have neither labels nor ends.
    test_no_labels_is_an_error = None
    test_end_of_text_is_trained = None
    # What is said of a round, after its last step, has no loss; test_trl_rounds looks at what is logged.
    test_metrics_are_finite_and_named = None

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {
            "reward": {"name": "length", "unit": "characters", "target": 40},
            "rounds": 1,
            "num_generations": 4,
            "max_new_tokens": 8,
            "validation": [{"prompt": "Tell me more."}, {"prompt": "And then?"}],
            "keep_at": 0.0,
            "samples": 0,
        }
