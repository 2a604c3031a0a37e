"""The benchmarks under the kit that every benchmark has to pass: on the embedded sample, and on published data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit.testing import BenchmarkSuite


class TestMmlu(BenchmarkSuite):
    name = "tunekit-evals/mmlu"
    constant_share = 12 / 48  # lines that end with ",A" in the sample's test files


class TestGsm8k(BenchmarkSuite):
    name = "tunekit-evals/gsm8k"
    constant_share = 1 / 20  # no other answer is 360


class TestMmluPublished(BenchmarkSuite):
    """The letters of the sample are balanced, so that a shifted label would not show there; these are not."""

    name = "tunekit-evals/mmlu"
    options = {"subjects": ["anatomy", "abstract_algebra"]}
    constant_share = (25 + 22) / (135 + 100)  # lines that end with ",A" in the two test files

    @pytest.fixture
    def data(self, shared_data: Path) -> Path:
        return shared_data / "mmlu"

    test_prompts_match_the_snapshot = None  # the data are not ours to copy


class TestGsm8kPublished(BenchmarkSuite):
    """Answers with thousands separators, and many more of them."""

    name = "tunekit-evals/gsm8k"
    options = {"num_fewshot": 2}
    limit = 9
    constant_share = 7 / 660  # problems whose published answer ends with #### 18, as the first does

    @pytest.fixture
    def data(self, shared_data: Path) -> Path:
        return shared_data / "gsm8k"

    test_prompts_match_the_snapshot = None
