"""tunekit-example, tested by the kit as any plugin is."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit import Pipeline
from tunekit.testing import (
    BenchmarkSuite,
    DataFormatSuite,
    PluginSuite,
    QuantizerSuite,
    RewardCase,
    RewardSuite,
    TrackerSuite,
    TrainerSuite,
    isolated_session,
    tiny_pair,
)
from tunekit_example.benchmark import QUESTIONS
from tunekit_example.quantizer import round_rows


class TestExamplePlugin(PluginSuite):
    name = "tunekit-example"


class TestPlain(TrainerSuite):
    name = "tunekit-example/plain"


class TestRtn(QuantizerSuite):
    name = "tunekit-example/rtn"


class TestCapitals(BenchmarkSuite):
    name = "tunekit-example/capitals"
    source = QUESTIONS
    constant_share = 3 / 12
    known_answers = {"capitals/1": "Paris", "capitals/2": "Tokyo"}


class TestWords(RewardSuite):
    name = "tunekit-example/words"
    cases = (
        RewardCase(prompt="Say red twice.", completion="red red", score=0.0),
        RewardCase(prompt="Say red twice.", completion="red", score=-1.0),
        RewardCase(prompt=[{"role": "user", "content": "Say red."}], completion="red red red red", score=-2.0),
    )

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"words": 2}


class TestChatlog(DataFormatSuite):
    name = "tunekit-example/chatlog"
    good = (
        (
            {"chat": "user: Hello!\nassistant: Good day.", "system": "Be kind."},
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Hello!"},
                    {"role": "assistant", "content": "Good day."},
                ]
            },
        ),
        (
            {"chat": "User: Two lines,\nplease.\nAssistant: One", "system": "Be brief."},
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Two lines,\nplease."},
                    {"role": "assistant", "content": "One"},
                ]
            },
        ),
    )
    bad = (({"chat": "Hello!"}, "chat"), ({"chat": 7}, "chat"))


class TestCsvlog(TrackerSuite):
    name = "tunekit-example/csvlog"
    durable = True
    events = ("MetricLogged",)

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": str(tmp_path / "log.csv")}

    def sent(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The lines of one optimizer step are one event."""
        events: dict[tuple[str, str, str], dict[str, Any]] = {}
        with Path(options["path"]).open(newline="") as stream:
            for line in csv.DictReader(stream):
                key = (line["run_id"], line["step"], line["global_step"])
                event = events.setdefault(
                    key,
                    {
                        "event": "MetricLogged",
                        "run_id": line["run_id"],
                        "step": line["step"],
                        "global_step": int(line["global_step"]),
                        "values": {},
                    },
                )
                event["values"][line["name"]] = float(line["value"])
        return list(events.values())


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    weight = torch.tensor([[0.0, -1.27, 0.634, 0.006], [0.0, 0.0, 0.0, 0.0]])
    codes, scale = round_rows(weight)
    assert codes.tolist() == [[0, -127, 63, 1], [0, 0, 0, 0]]
    assert bool((codes.float() * scale - weight).abs().max() <= scale.max() / 2 + 1e-7)


def test_all_five_in_one_pipeline(tmp_path: Path) -> None:
    rows = [{"chat": f"user: Say {word}.\nassistant: {word}"} for word in ("red", "green", "blue", "teal")]
    line = (
        Pipeline(model=tiny_pair())
        .sft(data=rows, format="tunekit-example/chatlog", method="tunekit-example/plain", max_steps=2, batch_size=2)
        .quantize("int8", method="tunekit-example/rtn")
        .evaluate(["tunekit-example/capitals"])
        .track("tunekit-example/csvlog")
    )
    result = line.run(workdir=tmp_path, session=isolated_session())
    score = result.step("evaluate").scores["capitals"]
    assert score.n == 12 and not score.comparable
    card = result.step("quantize").artifact.model
    assert card is not None and card.quantized == "rtn int8"
    with (tmp_path / "metrics.csv").open() as stream:
        lines = [line for line in csv.DictReader(stream) if line["name"] == "loss"]
    assert [(line["step"], int(line["global_step"])) for line in lines] == [("sft", 1), ("sft", 2)]
    assert [float(line["value"]) for line in lines] == [entry["loss"] for entry in result.step("sft").history]
