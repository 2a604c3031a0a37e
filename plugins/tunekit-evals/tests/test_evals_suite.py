"""The benchmarks under the kit that every benchmark has to pass: on the embedded sample, and on published data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError
from tunekit.plugins import ChoiceRequest, Response, ScoredRow, benchmark
from tunekit.testing import BenchmarkSuite


class TestMmlu(BenchmarkSuite):
    name = "tunekit-evals/mmlu"
    constant_share = 12 / 48  # lines that end with ",A" in the sample's test files
    known_answers = {"arithmetic/0": "C", "world_geography/5": "A", "logic/5": "B", "world_history/5": "D"}


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


CAPITALS = {"Peru": "Lima", "Mali": "Bamako", "Chile": "Santiago", "the Republic of Fiji": "Suva"}


@benchmark(name="capitals-inline", needs="loglikelihood", sample=True)
class Capitals:
    """Without a package, worked examples, parts and groups: a benchmark needs none of them."""

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        if source is not None:
            raise DataError(f"Capitals are not read from {source}.", details={"file": str(source)})
        for country, capital in CAPITALS.items():
            yield {"id": country, "country": country, "capital": capital}

    def request(self, row: Mapping[str, Any]) -> ChoiceRequest:
        choices = tuple(f" {capital}" for capital in CAPITALS.values())
        return ChoiceRequest(context=f"The capital of {row['country']} is", choices=choices)

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        prediction = tuple(CAPITALS.values())[response.logprobs.index(max(response.logprobs))]
        return ScoredRow(
            id=row["id"],
            prompt_hash="",
            prediction=prediction,
            target=row["capital"],
            correct=prediction == row["capital"],
            logprobs=response.logprobs,
            truncated=response.truncated,
        )

    def protocol(self) -> Mapping[str, Any]:
        return {"metric": "acc", "shots": 0}


class TestCapitals(BenchmarkSuite):
    name = "inline/capitals-inline"
    plugins = (Capitals,)
    constant_share = 1 / 4
    known_answers = {"Peru": "Lima", "Mali": "Bamako"}
