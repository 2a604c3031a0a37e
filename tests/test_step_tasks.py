"""``task=`` and ``objective=`` of the pretraining verbs: which trainer they choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit import Pipeline
from tunekit.errors import PipelineError
from tunekit.planfile import load_yaml


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        ({}, None),
        ({"task": "lm"}, "causal"),
        ({"task": "lm", "objective": "masked"}, "mlm"),
        ({"objective": "masked"}, "mlm"),
        ({"task": "classification"}, "classification"),
        ({"task": "ner"}, "ner"),
        ({"task": "regression"}, "regression"),
        ({"method": "ner"}, "ner"),
    ],
)
def test_a_task_chooses_the_trainer(arguments: dict[str, str], method: str | None) -> None:
    step = Pipeline("m").post_pretrain("a.txt", **arguments).plan.steps[0]
    assert step.method == method
    assert dict(step.options) == {"data": "a.txt"}


def test_several_tasks_become_an_option_and_keep_objects_by_reference() -> None:
    rows = (row for row in [{"text": "a", "label": "b"}])
    line = Pipeline("m").post_pretrain(task={"mood": {"task": "classification", "data": rows}, "names": "ner"})
    step = line.plan.steps[0]
    assert step.method == "multitask"
    assert step.options["tasks"]["names"] == "ner"
    assert step.options["tasks"]["mood"]["data"].startswith("object:generator-")


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "ner", "method": "ner"},
        {"objective": "masked", "method": "causal"},
        {"task": "ner", "objective": "masked"},
        {"task": "classify"},
        {"objective": "mlm"},
        {"task": {}},
    ],
)
def test_what_contradicts_itself_or_is_unknown_is_an_error(arguments: dict[str, object]) -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline("m").post_pretrain("a.txt", **arguments)
    assert caught.value.code == "step-task"


def test_pretrain_takes_an_objective() -> None:
    assert Pipeline().pretrain("a.txt").plan.steps[0].method is None
    assert Pipeline().pretrain("a.txt", objective="masked").plan.steps[0].method == "mlm"


def test_a_plan_file_says_it_the_same_way(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("schema: 1\nmodel: m\nsteps:\n- post_pretrain: {data: a.txt, task: lm, objective: masked}\n")
    assert load_yaml(file).steps[0].method == "mlm"
    file.write_text("schema: 1\nmodel: m\nsteps:\n- post_pretrain: {data: a.txt, task: nerr}\n")
    with pytest.raises(PipelineError, match="no task 'nerr'"):
        load_yaml(file)


def test_an_architecture_in_memory_becomes_plain_data() -> None:
    class Config:
        """As the configs of transformers are."""

        model_type = "llama"

        def to_json_string(self) -> str:
            return '{"hidden_size": 64}'

    step = Pipeline().pretrain("a.txt", architecture=Config()).plan.steps[0]
    assert dict(step.options["architecture"]) == {"hidden_size": 64, "model_type": "llama"}
