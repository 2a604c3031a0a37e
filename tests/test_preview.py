"""The label view and the template check: what they show, what they refuse, and how much they read."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import tunekit.plugins
from tunekit import Pipeline, Session
from tunekit.cli.app import app
from tunekit.errors import ArtifactError, DataError, PipelineError, PluginError
from tunekit.plugins import LabelTotals, PreviewContext, PreviewRow, TokenizerSource, TokenView
from tunekit.template import check_template
from tunekit.testing import save_tiny, tiny_model, tiny_pair, tiny_tokenizer, toy_rows

TALK = [
    {"role": "user", "content": "Hi <b>"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ok"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def test_rows_labels_turns_and_totals(folder: Path) -> None:
    """Ids and labels are those of the encoder, counted by hand: one token per byte."""
    view = Pipeline(model=str(folder)).sft(data=[{"messages": TALK}], max_length=64).preview()
    (row,) = view.rows
    assert "".join(token.text for token in row.tokens) == (
        "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nOk<|im_end|>\n"
    )
    assert [token.text for token in row.tokens if token.label is not None] == [
        *("Y", "o", "<|im_end|>", "\n"),
        *("O", "k", "<|im_end|>", "\n"),
    ]
    assert all(token.label in (None, token.id) and token.weight == (token.label is not None) for token in row.tokens)
    turns = [next(token.turn for token in row.tokens[at:]) for at in (0, 13, 14, 28, 29)]
    assert turns == [0, 0, 1, 1, 2] and {token.role for token in row.tokens} == {"user", "assistant"}
    assert {token.text for token in row.tokens if token.special} == {"<|im_start|>", "<|im_end|>"}
    assert view.totals == {
        "rows": 1,
        "tokens": 55,
        "trained_tokens": 8,
        "masked_share": round(1 - 8 / 55, 6),
        "cut_rows": 0,
        "cut_tokens": 0,
        "stop_trained_share": 1.0,
        "bos": {},
        "untrained_rows": 0,
    }
    assert view.complete and view.scanned == 1
    assert json.loads(json.dumps(view.to_dict()))["rows"][0]["tokens"][0]["id"] == 1


def test_three_ways_to_look(folder: Path) -> None:
    view = Pipeline(model=str(folder)).sft(data=[{"messages": TALK}], max_length=64).preview()
    text = str(view)
    assert "  [Yo<|im_end|>⏎]\n" in text and "[Hi" not in text and "turn 1, assistant" in text
    console = Console(record=True, width=100, force_terminal=True, file=io.StringIO())
    console.print(view)
    console.print(view.table(0))
    drawn = console.export_text(styles=True)
    assert re.search(r"\x1b\[(1;)?32mY\x1b\[0m", drawn) and "\x1b[2mH" in drawn
    html = view._repr_html_()
    assert html.count("background:#c9f2d0") == 8 and "Hi <b>" not in html and "&lt;" in html


def test_only_the_rows_that_are_scanned_are_read(folder: Path) -> None:
    """A data set of any size costs what is looked at, and one row more than asked for is never needed."""
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"prompt": f"{taken}", "completion": "y"}

    view = Pipeline(model=str(folder)).sft(data=rows(), max_length=64).preview(n=2, scan=200)
    assert view.totals["rows"] == 200 and not view.complete and taken <= 201
    assert [row.number for row in view.rows] == [1, 2] and "raise scan" in str(view)


def test_preference_pairs_are_two_examples_of_one_row(folder: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "good", "rejected": "bad"}]
    view = Pipeline(model=str(folder)).align(data=rows, max_length=64).preview()
    shown = [
        (row.number, "".join(token.text for token in row.tokens if token.label is not None), row.tokens[-1].role)
        for row in view.rows
    ]
    assert shown == [(1, "good<|im_end|>\n", "chosen"), (1, "bad<|im_end|>\n", "rejected")]
    assert view.totals["rows"] == 2


def test_blocks_of_documents_are_those_that_are_trained(folder: Path) -> None:
    """Every token but the first of each document is learned once; documents are told apart."""
    view = Pipeline(model=str(folder)).post_pretrain(data=[{"text": "abcd"}, {"text": "xyz"}], max_length=8).preview()
    learned = ["".join(token.text for token in row.tokens if token.label is not None) for row in view.rows]
    assert learned == ["bcd<|im_end|>yz", "<|im_end|>"]
    assert [token.turn for token in view.rows[0].tokens] == [0, 0, 0, 0, 0, 1, 1, 1]
    own = Pipeline().pretrain(data=toy_rows("text", 30), max_length=32).preview(scan=10)
    assert own.totals["trained_tokens"] > 0 and "tokenizer was trained on the first 10 rows" in own.notes[0]
    hidden = Pipeline().pretrain(method="mlm", data=toy_rows("text", 30), max_length=32).preview(n=9)
    marks = [token for row in hidden.rows for token in row.tokens if token.label is not None]
    assert marks and any(token.text == "<|mask|>" and isinstance(token.label, str) for token in marks)


def test_the_tokenizer_of_a_later_step(folder: Path, tmp_path: Path) -> None:
    """Of the base model while no step makes another one; of a finished step in the work folder; else an error."""
    rows = toy_rows("prompt_completion", 4)
    chain = Pipeline(model=str(folder)).sft(data=rows).sft(data=rows, name="again")
    assert chain.preview("again").rows == Pipeline(model=str(folder)).sft(data=rows).preview().rows
    line = Pipeline().pretrain(data=toy_rows("text", 4)).sft(data=rows)
    with pytest.raises(ArtifactError) as caught:
        line.preview("sft")
    assert caught.value.code == "no-tokenizer" and "workdir" in str(caught.value.fix)
    # What the run of the first step would have left there.
    from tunekit.plan import thaw
    from tunekit.resolve import resolve
    from tunekit.session import default_session

    step = resolve(line.plan, default_session()).steps[0]
    done = save_tiny(tmp_path / step.folder / "model").parent
    (done / "options.json").write_text(json.dumps({"options": thaw(step.options)}))
    (done / "result.json").write_text(json.dumps({"model": {"path": "model"}}))
    assert line.preview("sft", workdir=tmp_path).totals["rows"] == 4
    other = Pipeline().pretrain(data=toy_rows("text", 4), layers=1).sft(data=rows)
    with pytest.raises(ArtifactError):
        other.preview("sft", workdir=tmp_path)


def test_steps_that_cannot_be_shown(folder: Path) -> None:
    for pipeline, step, code in (
        (Pipeline(model=str(folder)).sft(data=TALK), "stf", "unknown-step"),
        (Pipeline(model=str(folder)).quantize("int4"), None, "preview"),
        (Pipeline(model=str(folder)).sft(data=[{"text": "x"}]).quantize("int4"), "quantize", "no-preview"),
    ):
        with pytest.raises(PipelineError) as caught:
            pipeline.preview(step)
        assert caught.value.code == code
    with pytest.raises(PipelineError):
        Pipeline(model=str(folder)).sft(data=[{"text": "x"}]).preview(n=-1)


def test_a_trainer_of_ones_own_shows_its_rows(folder: Path) -> None:
    """``preview=`` of the decorator is a callable or an import string; what it gives is looked at."""

    def show(ctx: PreviewContext) -> Iterator[PreviewRow]:
        tokenizer, facts = ctx.tokenizer()
        assert facts.positions == 256 and facts.embeddings == 288 and facts.stop_ids == (2,)
        for number, row in enumerate(ctx.data.rows(), 1):
            (token,) = tokenizer(row["text"])["input_ids"]
            if row["text"] == "?":
                yield 7  # type: ignore[misc]
            yield PreviewRow(number=number, tokens=(TokenView(id=token, text=row["text"], label=token),))
        ctx.note("looked at by hand")

    @tunekit.plugins.trainer(
        name="own", stage="sft", data=("text",), options=tunekit.plugins.TrainOptions, preview=show
    )
    class Own:
        def run(self, ctx: Any) -> Any: ...

    line = Pipeline(model=str(folder), session=Session(plugins=[Own])).sft(method="own", data=[{"text": "a"}])
    view = line.preview()
    assert view.totals["trained_tokens"] == 1 and view.notes == ("looked at by hand",)
    with pytest.raises(PluginError) as caught:
        Pipeline(model=str(folder), session=Session(plugins=[Own])).sft(method="own", data=[{"text": "?"}]).preview()
    assert caught.value.code == "wrong-answer"
    with pytest.raises(PluginError):
        tunekit.plugins.trainer(name="own", stage="sft", preview=lambda: None)(Own)


def test_no_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, and pairs in memory, give tokenizer and facts; the weights of a folder may even be missing."""
    from tunekit.session import default_session

    source = default_session().resolve_model(str(folder))
    assert isinstance(source, TokenizerSource)
    bare = folder.with_name("bare")
    bare.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    rows = toy_rows("prompt_completion", 3)
    shown = Pipeline(model=str(bare)).sft(data=rows).preview()
    assert shown.rows == Pipeline(model=tiny_pair()).sft(data=rows).preview().rows


def test_totals_know_what_is_harmful() -> None:
    totals = LabelTotals()
    totals.add(tokens=4, trained=2, cut=3, stopped=False, bos=1)
    assert totals.harm() is not None and totals.harm().code == "stop-never-trained"  # type: ignore[union-attr]
    totals.add(tokens=4, trained=2, stopped=True, bos=1)
    totals.raise_if_harmful()
    assert totals.to_dict()["stop_trained_share"] == 0.5 and totals.to_dict()["bos"] == {"1": 2}
    masked = LabelTotals()
    masked.add(tokens=4, trained=0)
    with pytest.raises(DataError) as caught:
        masked.raise_if_harmful()
    assert caught.value.code == "no-targets"
    classes = LabelTotals()
    classes.add(tokens=4, trained=0, whole=True)
    classes.raise_if_harmful()


def report(template: str | None, **settings: Any) -> dict[str, str]:
    model = (tiny_model(), tiny_tokenizer(template, **settings))
    return {check.name: check.level for check in check_template(model).checks}


def test_template_check() -> None:
    from tunekit.testing.fakes import CHATML

    good = report(CHATML)
    assert {name for name, level in good.items() if level == "ok"} == {
        *(
            "vocabulary",
            "renders",
            "prefix-preserving",
            "generation-prompt",
            "system",
            "labels",
            "stop-trained",
            "one-bos",
        )
    }
    assert good["tools"] == good["tool-calls"] == good["thoughts"] == "note"
    begun = "<bos>" + CHATML
    assert report(begun, bos=True)["one-bos"] == "note" and report("<bos>" + begun, bos=True)["one-bos"] == "problem"
    assert report(CHATML.replace("<|im_end|>", ""))["stop-trained"] == "note"
    refused = report("{{ raise_exception('never') }}")
    assert refused["renders"] == refused["labels"] == "problem"
    last = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content | upper }}")
    assert report(last)["prefix-preserving"] == "note"
    asks = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}")
    assert report(asks)["generation-prompt"] == "note" and report(asks)["labels"] == "ok"
    always = CHATML.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
    assert report(always)["generation-prompt"] == "problem" and report(always)["labels"] == "ok"
    ignores = "{% for m in messages %}{{ m.role }}{{ m.content }}<|im_end|>{% endfor %}"
    assert report(ignores)["generation-prompt"] == "ok"
    thinks = CHATML.replace("{{ m.content }}", "{{ m.reasoning_content }}{{ m.content }}{{ m.tool_calls }}{{ tools }}")
    assert {report(thinks)[name] for name in ("thoughts", "tools", "tool-calls")} == {"ok"}
    assert report(None)["template"] == "note"
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<new-{number}>" for number in range(40)])
    assert not check_template((tiny_model(), tokenizer)).ok


def test_commands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows("prompt_completion", 4)))
    Pipeline(model=str(folder)).sft(data="rows.jsonl").to_yaml("plan.yaml")
    run = CliRunner().invoke
    shown = run(app, ["preview", "plan.yaml", "-n", "1", "--table"])
    assert shown.exit_code == 0 and "masked" in shown.output and "tokens learned" in shown.output
    data = json.loads(run(app, ["preview", "plan.yaml", "--json", "--scan", "2", "-n", "2"]).stdout)
    assert data["totals"]["rows"] == 2 and len(data["rows"]) == 2 and not data["complete"]
    assert run(app, ["preview", "plan.yaml", "--step", "stf"]).exit_code == 1
    Pipeline(model=str(folder)).sft(data=[{"prompt": "p", "completion": "y" * 90}], max_length=64).to_yaml("cut.yaml")
    assert run(app, ["preview", "cut.yaml"]).exit_code == 4
    checked = run(app, ["template", "check", str(folder), "--json"])
    assert checked.exit_code == 0 and json.loads(checked.stdout)["ok"]
    broken = save_tiny(tmp_path / "broken", template="{{ raise_exception('never') }}")
    assert run(app, ["template", "check", str(broken)]).exit_code == 1


def test_blanks_of_sentencepiece_tokens_are_shown(stories260k: Path) -> None:
    view = Pipeline(model=str(stories260k)).sft(data=[{"prompt": "Once upon", "completion": " a time"}]).preview()
    text = "".join(token.text for token in view.rows[0].tokens if not token.special)
    assert "Once upon a time" in text
