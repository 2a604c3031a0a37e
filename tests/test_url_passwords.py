"""Passwords in URLs: refused before they are in a plan, and shown nowhere."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from typer.testing import CliRunner

from tunekit import Pipeline, Session, adapter, load_dataset, lora
from tunekit._secrets import masked, password_places
from tunekit.cli.app import app
from tunekit.data import mix
from tunekit.errors import CheckFailed, OptionsError, PipelineError, TunekitError
from tunekit.feedback import FeedbackStore
from tunekit.plan import AdapterPlan, Plan, StepPlan
from tunekit.plugins import DataOptions, trainer

SECRET = "s3cr3tpw"
URL = f"postgresql://ann:{SECRET}@db.example.org/feedback"
HELD = [
    URL,
    f"postgresql+psycopg://ann:{SECRET}@db.example.org/feedback",
    f"postgresql://db.example.org/feedback?user=ann&password={SECRET}",
    f"postgresql://db.example.org/feedback?pass%77ord={SECRET}",
    f"POSTGRES://ann:with/slash-{SECRET}@db.example.org/feedback",
    f"postgres://ann:with blank {SECRET}@db.example.org/feedback",
    f"jdbc:postgresql://db.example.org/x?sslpassword={SECRET}",
    f"postgresql:/ann:{SECRET}@db.example.org/feedback",
    f"redis://:{SECRET}@localhost:6379/0",
    f"https://ann:{SECRET}@example.org/rows.jsonl",
    f"https://example.org/rows.jsonl?access_token={SECRET}",
    f"https://ghp_{SECRET}{SECRET}@github.com/owner/name",
    f"s3://ann:{SECRET}@bucket/rows.jsonl",
]
FREE = [
    "postgresql://ann@db.example.org/feedback",
    "postgresql://ann:@db.example.org/feedback",
    "postgresql://db.example.org:5432/feedback?sslmode=require",
    "sqlite:///feedback.db",
    "https://example.org:8080/@ann/rows.jsonl",
    "http://[::1]:8080/@ann",
    "https://example.org/rows?max_token=5&tokenizer=a&key=b",
    "https://example.org: mail ann@example.org",
    "hf://datasets/owner/name@main",
    "see postgresql://ann:password@db.example.org",
    "C:/data/a:b@c.jsonl",
    "owner/name:config@train",
    "rows.jsonl",
]


@pytest.mark.parametrize("text", HELD)
def test_what_holds_a_password(text: str) -> None:
    assert [place for place, _ in password_places({"data": text})] == [("data",)]
    text = text.replace("with blank ", "")  # where it ends is unknown, in a longer text
    for shown in (masked(text), masked(f"Dsn('{text.replace('%77', 'w')}')")):
        assert SECRET not in shown and "***" in shown


@pytest.mark.parametrize("text", FREE)
def test_what_holds_none(text: str) -> None:
    assert not list(password_places({"data": text}))
    if not text.startswith("see"):
        assert masked(text) == text


def said(error: TunekitError) -> str:
    """Everything that an error says anywhere."""
    return "".join([str(error), repr(error), *traceback.format_exception(error), repr(vars(error))]) + repr(
        vars(pickle.loads(pickle.dumps(error)))
    )


BUILT: list[Callable[[], Any]] = [
    lambda: Pipeline(model=URL),
    lambda: Pipeline().sft(data=URL),
    lambda: Pipeline().sft(data=Path(URL)),
    lambda: Pipeline().sft(data="rows.jsonl", validation=URL),
    lambda: Pipeline().sft(data={"mix": [{"data": "rows.jsonl"}, {"data": URL, "weight": 1}]}),
    lambda: Pipeline().sft(data={"mix": [(URL, 1)]}),
    lambda: Pipeline().sft(data=[URL]),
    lambda: Pipeline().align(prompts=URL),
    lambda: Pipeline().align(data=URL, prompts=URL),
    lambda: Pipeline().align(data="rows.jsonl", reward={"name": "reward-model", "model": URL}),
    lambda: Pipeline().align(data="rows.jsonl", reward={URL: 1.0}),
    lambda: Pipeline().sft(method=URL),
    lambda: Pipeline().sft(name=URL),
    lambda: Pipeline().sft(input=URL),
    lambda: Pipeline().sft(adapter=URL),
    lambda: Pipeline().post_pretrain(task={"mood": {"task": "classification", "data": URL}}),
    lambda: Pipeline().quantize("int4", data=URL),
    lambda: Pipeline().evaluate("mmlu", data={"mmlu": URL}),
    lambda: Pipeline().export(URL),
    lambda: Pipeline().step("distill", teacher={"places": [{"at": URL}]}),
    lambda: Pipeline().track("mlflow", uri=URL),
    lambda: Pipeline().lora(init=URL),
    lambda: lora(init=URL),
    lambda: adapter(URL),
    lambda: StepPlan(kind="sft", name="sft", options={"data": URL}),
    lambda: AdapterPlan("lora", {"init": URL}),
    lambda: Plan(trackers=({"name": "mlflow", "uri": URL},)),
    lambda: mix({URL: -1}),
    lambda: load_dataset(URL),
    lambda: Session(autoload=False).resolve_dataset({"mix": [{"data": URL}]}),
    lambda: Session(autoload=False).resolve_model(URL),
    lambda: FeedbackStore(Path(URL)),
]


@pytest.mark.parametrize("build", BUILT)
def test_no_plan_is_built_around_a_password(build: Callable[[], Any]) -> None:
    with pytest.raises(OptionsError, match="is a URL that holds a password") as caught:
        build()
    assert caught.value.code == "password-in-url" and "PGPASSWORD" in caught.value.fix
    assert SECRET not in said(caught.value)


def test_it_says_which_option_and_what_to_do() -> None:
    with pytest.raises(OptionsError) as caught:
        Pipeline().sft(data={"mix": [{"data": URL}]}, name="talk")
    assert str(caught.value).splitlines() == [
        "The option data.mix[0].data of talk is a URL that holds a password, which plans, reports and logs would show.",
        "  asked: data.mix[0].data=postgresql://...",
        "  fix: leave it out, postgresql://user@host/database, and put it into the environment variable PGPASSWORD or "
        "the file ~/.pgpass; or pass data=FeedbackStore(url)",
    ]
    with pytest.raises(
        OptionsError, match=r"fix: leave it out of the URL, and keep it in the environment, or in .*netrc"
    ):
        Pipeline(model=HELD[9])


def test_an_object_that_is_a_url_is_not_shown() -> None:
    class Dsn:
        def __repr__(self) -> str:
            return f"Dsn('{URL}')"

    for build in (lambda: Pipeline().sft(loss=Dsn()), lambda: load_dataset(Dsn())):
        with pytest.raises(TunekitError) as caught:
            build()
        assert "postgresql://***@db.example.org" in caught.value.asked and SECRET not in said(caught.value)


def test_rows_are_no_options() -> None:
    rows = [{"prompt": "How do I connect?", "completion": URL}]
    line = Pipeline().sft(data=rows).align(method="grpo", prompts=[URL]).sft(data=mix([(rows, 1)]))
    assert line.plan.steps[1].options["data"][0] == {"prompt": URL}
    assert Pipeline.from_yaml(line.to_yaml()) == line == Pipeline.from_json(line.to_json())
    assert list(load_dataset(rows).rows()) == rows


def test_a_default_that_holds_one_is_not_shown() -> None:
    class Own(DataOptions):
        uri: str = Field(default_factory=lambda: URL)

    @trainer(name="sender", stage="sft", data=("text",), options=Own)
    class Sender:
        """Sends rows away."""

        def run(self, ctx: Any) -> Any:
            """Nothing."""

    line = Pipeline(session=Session(plugins=[Sender], autoload=False)).sft(method="sender", data=[{"text": "a"}])
    (found,) = [finding for finding in line.check() if finding.level == "error" and finding.step == "sft"]
    assert found.code == "password-in-url" and SECRET not in repr(found)
    with pytest.raises(CheckFailed, match="The option uri of ") as caught:
        line.explain()
    assert SECRET not in said(caught.value)


PLAN = f"""\
steps:
  - sft:
      dat: {URL}
      epochs: 1
      epochs: 2
  - {{kind: sft, name: "{URL}"}}
  - align: {{reward: {{"{URL}": 1}}}}
"""


def test_a_plan_file_with_a_password_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_yaml(tmp_path / "plan.yaml")
    assert caught.value.code == "password-in-url" and "PGPASSWORD" in caught.value.fix
    assert [problem["line"] for problem in caught.value.details["problems"]] == [3, 6, 7]
    assert "steps[0].sft.dat: is a URL that holds a password" in caught.value.found
    assert SECRET not in said(caught.value)
    for text in (json.dumps({"steps": [{"kind": "sft", "options": {"data": URL}}]}), json.dumps({URL: 1})):
        with pytest.raises(PipelineError) as caught:
            Pipeline.from_json(text)
        assert SECRET not in said(caught.value)
    with pytest.raises(OptionsError) as unread:
        Pipeline.from_yaml(URL)
    assert SECRET not in said(unread.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "PLAN", "--debug"],
        ["run", "PLAN", "--json"],
        ["check", "PLAN"],
        ["check", "PLAN", "--json"],
        ["explain", "PLAN", "--format", "json"],
        ["preview", "PLAN"],
        ["run", URL],
        ["template", "check", URL],
    ],
    ids=" ".join,
)
def test_the_command_line_does_not_show_it(arguments: list[str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    made = CliRunner().invoke(app, [str(plan) if part == "PLAN" else part for part in arguments])
    assert made.exit_code != 0 and SECRET not in made.output + made.stderr
    assert "password" in made.output + made.stderr or "***" in made.output + made.stderr
    if "--json" in arguments:
        assert json.loads(made.stdout)["error"]["code"] == "password-in-url"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]
