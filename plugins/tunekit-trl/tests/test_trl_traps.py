"""Traps of tokens, templates and masks that other trainers fell into. Each test fails when its trap is set again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tunekit import Pipeline, lora
from tunekit.data import load_dataset
from tunekit.errors import DataError
from tunekit.plugins import ModelFacts
from tunekit.plugins.views import HARMFUL
from tunekit.testing import tiny_model, tiny_tokenizer
from tunekit.testing.beside import beside
from tunekit_trl.encoding import IGNORED, Encoder, encoder_from

driver = beside(__file__, "trl_driver")

LLAMA3 = (
    "<bos>{% for m in messages %}<|im_start|>{{ m.role }}<|im_start|>\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_start|>\n\n{% endif %}"
)
"""As Llama 3 writes: a header between special tokens, and a token that ends a turn without a line break."""
MISTRAL = (
    "<bos>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}<eos>{% else %}{{ raise_exception('no such role') }}{% endif %}"
    "{% endfor %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ (m.reasoning_content or '') | trim }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 3 writes: thoughts only in the turns after the last question; those of earlier turns are taken away."""

TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ok"},
]
WALRUS = {"type": "function", "function": {"name": "walrus", "parameters": {"place": {"type": "string"}}}}


def call(**arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "walrus", "arguments": arguments}}],
    }


def learned(encoder: Encoder, example: Any) -> str:
    """The learned tokens as text, with ``~`` for every run of tokens that is only read."""
    text, reading = "", False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        text += "" if label == IGNORED and reading else "~" if label == IGNORED else encoder.text([token])
        reading = label == IGNORED
    return text


def talk(encoder: Encoder, messages: list[dict[str, Any]], train_on: str = "all-assistant", **more: Any) -> str:
    return learned(encoder, encoder.example({"messages": messages, **more}, "conversation", train_on))


def chat(template: str, max_length: int = 512, **settings: Any) -> Encoder:
    tokenizer = driver.byte_tokenizer(template=template, **settings)
    return encoder_from(tokenizer, ModelFacts(embeddings=300), max_length)


def test_cut_answers_are_counted_and_never_trained_without_an_end(tmp_path: Path) -> None:
    """T3: cutting can remove the answer, or its end. Rows without an answer are refused, and so are data of which no
    row ends."""
    encoder = chat(driver.CHATML, 48)
    kept, lost = {"prompt": "p", "completion": "y" * 40}, {"prompt": "p" * 60, "completion": "y"}
    made = encoder.examples([kept, lost], "prompt_completion", "completion")
    assert not isinstance(made[0], DataError) and made[0].cut > 0 and not made[0].stopped
    assert isinstance(made[1], DataError) and made[1].code == "no-targets"

    model = (tiny_model(), tiny_tokenizer())
    long = [{"prompt": "p", "completion": "y" * 80}] * 3
    step = {"max_length": 64, "max_steps": 1}
    pipeline = Pipeline(model=model).sft(data=long, **step)
    for ask in (pipeline.preview, pipeline.run):
        with pytest.raises(DataError) as caught:
            ask(workdir=tmp_path)
        assert caught.value.code == "stop-never-trained" and "max_length" in str(caught.value.fix)
    view = Pipeline(model=model).sft(data=[*long, {"prompt": "p", "completion": "y"}], **step).preview()
    assert view.totals["cut_rows"] == 3 and view.totals["stop_trained_share"] == 0.25


def test_exactly_one_begin_of_text() -> None:
    """T5: the template writes it, and the tokenizer would add one more; or the template writes two."""
    encoder = chat(LLAMA3, bos=True)
    example = encoder.example({"messages": TALK}, "conversation", "all-assistant")
    assert example.input_ids.count(encoder.tokenizer.bos_token_id) == 1
    twice = encoder.tokenizer(encoder.text(example.input_ids))["input_ids"]
    assert twice[:2] == [encoder.tokenizer.bos_token_id] * 2, "the tokenizer of this test does not add one"
    pair = encoder.pair({"prompt": "Q", "chosen": "a", "rejected": "b"})
    assert encoder.tokenizer.bos_token_id not in pair.chosen_ids + pair.rejected_ids
    assert pair.prompt_ids.count(encoder.tokenizer.bos_token_id) == 1

    for doubled in (chat("<bos>" + LLAMA3, bos=True), chat("<bos>" + LLAMA3)):
        if doubled.tokenizer.bos_token is None:
            doubled.tokenizer.bos_token = "<bos>"
        with pytest.raises(DataError) as caught:
            doubled.example({"messages": TALK}, "conversation", "all-assistant")
        assert caught.value.code == "double-bos"
    model = (tiny_model(), driver.byte_tokenizer(template="<bos>" + LLAMA3, bos=True))
    with pytest.raises(DataError) as caught:
        Pipeline(model=model).sft(data=[{"messages": TALK}]).preview()
    assert caught.value.code == "double-bos"


@pytest.mark.parametrize("pad", ["<pad>", "<|im_end|>"])
def test_the_end_is_learned_whatever_pads(pad: str) -> None:
    """T6: labels masked by the id of the padding lose every end of a turn; and a template may end turns with a token
    that generation does not stop at."""
    encoder = chat(LLAMA3, pad=pad)
    assert talk(encoder, TALK) == "~Yo<|im_end|>~Ok<|im_end|>"
    assert encoder.example({"messages": TALK}, "conversation", "all-assistant").stopped

    other = chat(LLAMA3, pad=pad, eos="<eos>")
    example = other.example({"messages": TALK}, "conversation", "all-assistant")
    assert learned(other, example) == "~Yo<|im_end|>~Ok<|im_end|><eos>"
    assert example.stopped and example.appended_stop
    known = encoder_from(other.tokenizer, ModelFacts(stop_ids=(2,)), 512)
    assert known.text([2]) == "<|im_end|>" and talk(known, TALK) == "~Yo<|im_end|>~Ok<|im_end|>"


def test_end_that_the_next_turn_writes_belongs_to_the_answer() -> None:
    """T7: a template may write the token that ends an answer only when another turn follows."""
    template = (
        "{% for m in messages %}{% if not loop.first %}<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
    )
    assert talk(chat(template), TALK) == "~Yo<|im_end|>~Ok<|im_end|>"


def test_prompt_keeps_its_own_tokens() -> None:
    """T8: where prompt and answer would share a token, the model must be trained behind the prompt's tokens as they
    are when it is used; with tokens in a batch as alone."""
    tokenizer = driver.byte_tokenizer(template=None, eos="<eos>", merges=[("Ġ", "4"), ("4", "2")])
    encoder = Encoder(tokenizer, 64)
    rows = [
        {"prompt": "= ", "completion": "42"},
        {"prompt": "=", "completion": " 42"},
        {"prompt": "4", "completion": "2"},
    ]
    made = encoder.examples(rows, "prompt_completion", "completion")
    for row, example in zip(rows, made, strict=True):
        assert not isinstance(example, DataError)
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels == [*[IGNORED] * len(prompt), *example.input_ids[len(prompt) :]]
        assert learned(encoder, example) == f"~{row['completion']}<eos>"
    assert [example.boundary for example in made if not isinstance(example, DataError)] == ["split", "exact", "split"]


@pytest.mark.parametrize(
    ("template", "settings", "expected"),
    [
        (driver.CHATML, {}, "~Yo<|im_end|>\n~Ok<|im_end|>\n"),
        (LLAMA3, {}, "~Yo<|im_end|>~Ok<|im_end|>"),
        (MISTRAL, {"eos": "<eos>"}, "~ Yo<eos>~ Ok<eos>"),
        (TOOLS, {}, "~Yo<|im_end|>\n~Ok<|im_end|>\n"),
        (QWEN3, {}, "~Yo<|im_end|>\n~<think>\n\n</think>\n\nOk<|im_end|>\n"),
    ],
    ids=["chatml", "llama-3", "mistral", "tools", "qwen-3"],
)
def test_every_turn_is_learned_and_nothing_else(template: str, settings: dict[str, Any], expected: str) -> None:
    """T9, T10: all answers, not only the last, found by position and not by a marker that could be in the text."""
    assert talk(chat(template, **settings), TALK) == expected
    marked = [dict(message) for message in TALK]
    marked[0]["content"] = "say assistant\n [/INST] Yo"
    assert talk(chat(template, **settings), marked) == expected
    last = talk(chat(template, **settings), TALK, "last")
    assert last == "~" + expected.split("~")[-1]
    assert talk(chat(template, **settings), TALK, "completion") == last
    everything = talk(chat(template, **settings), TALK, "all")
    assert "~" not in everything and "Hi" in everything
    # A prompt with its history and an answer is the same conversation.
    encoder = chat(template, **settings)
    row = {"prompt": TALK[:3], "completion": TALK[3:]}
    assert learned(encoder, encoder.example(row, "prompt_completion", "completion")) == last
    assert learned(encoder, encoder.example(row, "prompt_completion", "all-assistant")) == expected


def test_thoughts_that_the_template_takes_away() -> None:
    """T9: templates that strip the thoughts of earlier turns. What is written is learned; what is lost is counted."""
    thinking = [dict(message) for message in TALK]
    thinking[1]["reasoning_content"], thinking[3]["reasoning_content"] = "because", "therefore"
    encoder = chat(QWEN3)
    example = encoder.example({"messages": thinking}, "conversation", "all-assistant")
    assert learned(encoder, example) == "~Yo<|im_end|>\n~<think>\ntherefore\n</think>\n\nOk<|im_end|>\n"
    assert example.lost_thoughts == 1
    renamed = [
        {("thinking" if name == "reasoning_content" else name): value for name, value in m.items()} for m in thinking
    ]
    assert encoder.example({"messages": renamed}, "conversation", "all-assistant") == example
    # A call without words of its own in a turn whose thoughts are gone.
    agent = [TALK[0], call(place="shore") | {"reasoning_content": "hm"}, {"role": "tool", "content": "12"}, *TALK[1:]]
    shown = talk(encoder, agent, tools=None)
    assert shown.startswith('~<tool_call>{"name": "walrus", "arguments": {"place": "shore"}}</tool_call><|im_end|>')
    assert "12" not in shown and "hm" not in shown and shown.count("<|im_end|>") == 3


def test_tool_outputs_are_never_learned_and_calls_are() -> None:
    """T9: what a tool answers is no text of the model; a call is, as the template writes it."""
    agent = [TALK[0], call(place="shore"), {"role": "tool", "content": "12"}, TALK[1]]
    encoder = chat(TOOLS)
    calls = '~<tool_call>{"name": "walrus", "arguments": {"place": "shore"}}</tool_call><|im_end|>\n~Yo<|im_end|>\n'
    assert talk(encoder, agent, tools=[WALRUS]) == calls
    assert talk(encoder, agent, "completion", tools=[WALRUS]) == calls
    everything = talk(encoder, agent, "all", tools=[WALRUS])
    assert "12" not in everything and "Hi" in everything and "walrus" in everything
    answer = {"prompt": "Hi", "completion": agent[1:], "tools": [WALRUS]}
    assert learned(encoder, encoder.example(answer, "prompt_completion", "completion")) == calls
    for rows, code in (({"messages": agent}, "tool-calls-lost"), ({"messages": TALK, "tools": [WALRUS]}, "tools-lost")):
        with pytest.raises(DataError) as caught:
            chat(driver.CHATML).example(rows, "conversation", "all-assistant")
        assert caught.value.code == code


@pytest.mark.parametrize("flag", [{"train": False}, {"weight": 0}, {"loss": False}])
@pytest.mark.parametrize("template", [driver.CHATML, None], ids=["chatml", "plain"])
def test_flag_leaves_a_turn_out(flag: dict[str, Any], template: str | None) -> None:
    """T9: a message may say itself whether it is learned, and a flag that cannot be followed is an error."""
    flagged = [dict(message) for message in TALK]
    flagged[1] |= flag
    encoder = Encoder(driver.byte_tokenizer(template=template), 512)
    shown = talk(encoder, flagged)
    assert "Yo" not in shown and "Ok<|im_end|>" in shown
    assert talk(encoder, TALK).replace("\n", "").count("<|im_end|>") == 2
    everything = talk(encoder, flagged, "all")
    assert "Yo" not in everything and "Hi" in everything
    read = encoder.text(encoder.example({"messages": flagged}, "conversation", "all-assistant").input_ids)
    assert "Yo" in read and "False" not in read
    (name,) = flag
    for message, value in ((1, 0.5), (1, "no")):
        wrong = [dict(each) for each in TALK]
        wrong[message][name] = value
        with pytest.raises(DataError) as caught:
            talk(encoder, wrong)
        assert caught.value.code == "turn-flag"
    flagged[3] |= flag
    with pytest.raises(DataError) as caught:
        talk(encoder, flagged)
    assert caught.value.code == "no-targets"


def test_null_keys_of_columnar_files_are_not_written() -> None:
    """T11: Arrow gives every tool and call the keys of all others, as nulls; a template would write them."""
    rows = [
        {"messages": [TALK[0], call(place="shore"), TALK[1]], "tools": [WALRUS]},
        {
            "messages": [TALK[0], call(depth=7), TALK[1]],
            "tools": [
                {"type": "function", "function": {"name": "walrus", "parameters": {"depth": {"type": "integer"}}}}
            ],
        },
    ]
    stored = Dataset.from_list(rows)
    assert "depth" in stored[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    encoder = chat(TOOLS)
    for row, plain in zip(load_dataset(stored, accepts=("conversation",)), rows, strict=True):
        example = encoder.example(row, "conversation", "all-assistant")
        assert "null" not in encoder.text(example.input_ids)
        assert example == encoder.example(plain, "conversation", "all-assistant")


def test_nulls_that_are_meant_are_written() -> None:
    """T11, the other way round: a call that says null, as JSON text, and a default that is null stay."""
    said = call()
    said["tool_calls"][0]["function"]["arguments"] = '{"place": null}'
    tool = {"name": "walrus", "parameters": {"properties": {"place": {"type": "string", "default": None}}}}
    row = {"messages": [TALK[0], said, TALK[1]], "tools": json.dumps([tool])}
    encoder = chat(TOOLS)
    (read,) = load_dataset([row], accepts=("conversation",))
    text = encoder.text(encoder.example(read, "conversation", "all-assistant").input_ids)
    assert '"arguments": {"place": null}' in text and '"default": null' in text


def test_tokens_beyond_the_embeddings_are_refused_before_and_in_training(tmp_path: Path) -> None:
    """T19: a tokenizer with more tokens than the model has embeddings."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<new-{number}>" for number in range(40)])
    model = (tiny_model(vocabulary=288), tokenizer)
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b <new-39>"}]
    pipeline = Pipeline(model=model).sft(data=rows, adapter=lora(r=2), max_steps=1)
    for ask in (pipeline.preview, pipeline.run):
        with pytest.raises(DataError) as caught:
            ask(workdir=tmp_path)
        assert caught.value.code == "vocabulary" and caught.value.details["row"] == 2


def test_what_changes_the_labels_is_an_error_and_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """T36: a row that cannot be masked as asked ends the training; leaving it out has to be asked for, and is told."""
    hidden = "{% for m in messages %}{{ m.content | upper if loop.last else m.content | length }}{% endfor %}"
    with pytest.raises(DataError) as caught:
        chat(hidden + "{% if add_generation_prompt %}>{% endif %}").example(
            {"messages": TALK}, "conversation", "all-assistant"
        )
    assert caught.value.code == "template-boundary"
    rows = [{"prompt": "p" * 300, "completion": "y"}, {"prompt": "p", "completion": "y"}]
    model = (tiny_model(), tiny_tokenizer())
    view = Pipeline(model=model).sft(data=rows, max_length=64).preview()
    assert [(problem.row, problem.code, problem.skipped) for problem in view.problems] == [(1, "no-targets", False)]
    asked = Pipeline(model=model).sft(data=rows, max_length=64, on_bad_row="skip").preview()
    assert [problem.skipped for problem in asked.problems] == [True]
    assert view.totals == asked.totals and view.totals["untrained_rows"] == 1
    with pytest.raises(DataError) as caught:
        Pipeline(model=model).sft(data=rows, max_length=64, max_steps=1).run(tmp_path)
    assert caught.value.code == "no-targets" and caught.value.details["row"] == 1
    assert not [warning for warning in recwarn if "tunekit" in str(warning.filename)]


NO_CALLS = TOOLS.replace("<tool_call>{{ c.function | tojson }}</tool_call>", "")
ONE_CALL = TOOLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
NAMES_ONLY = TOOLS.replace("c.function | tojson", "c.function.name")
ONE_TOOL = TOOLS.replace("for t in tools", "for t in tools[:1]")
NO_TOOLS = TOOLS.replace("{{ t | tojson }}", "You have tools.")
NO_RESULTS = TOOLS.replace("<tool_response>{{ m.content }}</tool_response>", "")
NO_SYSTEM = TOOLS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
NO_LATER = TOOLS.replace("<tool_response>{{", "<tool_response>{{ '' if loop.index > 4 else")


@pytest.mark.parametrize(
    ("template", "code"),
    [
        (NO_CALLS, "tool-calls-lost"),
        (ONE_CALL, "tool-calls-lost"),
        (NAMES_ONLY, "tool-calls-lost"),
        (NO_TOOLS, "tools-lost"),
        (ONE_TOOL, "tools-lost"),
        (NO_RESULTS, "tool-results-lost"),
        (NO_LATER, "tool-results-lost"),
        (NO_SYSTEM, "system-lost"),
        (TOOLS, ""),
    ],
    ids=["calls", "one-call", "arguments", "tools", "one-tool", "results", "later-results", "system", "all-written"],
)
def test_what_the_template_leaves_out_is_an_error(template: str, code: str) -> None:
    """T36: whatever the row says elsewhere. The names of all tools stand in a question, that of the call in the list
    of tools, and what the tool answered in the last answer."""
    twice = call(place="shore")
    twice["tool_calls"] = [*twice["tool_calls"], *call(place="reef")["tool_calls"]]
    other = {"type": "function", "function": {"name": "heron", "parameters": {}}}
    system = {"role": "system", "content": "Be brief."}
    answered = {"role": "tool", "content": "12"}
    plain: dict[str, Any] = {"messages": TALK}
    asked = {"role": "user", "content": "Ask walrus or heron. Be brief."}
    agent: dict[str, Any] = {
        "messages": [system, asked, twice, answered, answered, {"role": "assistant", "content": "12"}],
        "tools": [WALRUS, other],
    }
    encoder = chat(template)
    # A row that was refused says nothing against one that has nothing to lose, before and after.
    made = encoder.examples([plain, agent, plain, agent], "conversation", "all-assistant")
    assert [found.code if isinstance(found, DataError) else "" for found in made] == ["", code, "", code]
    assert not code or code in HARMFUL


def test_one_look_is_enough_for_many_rows() -> None:
    """What a template writes is looked at once for rows of one kind, not once for each row."""
    encoder = chat(TOOLS)
    row = {"messages": [{"role": "system", "content": "S"}, TALK[0], call(a=1), {"role": "tool", "content": "12"}]}
    rows = [{"messages": [*row["messages"], {"role": "assistant", "content": str(n)}]} for n in range(30)]
    rendered: list[Any] = []
    render = encoder.renderer._written._render  # type: ignore[union-attr]
    encoder.renderer._written._render = lambda *args: rendered.append(1) or render(*args)  # type: ignore[union-attr, func-returns-value]
    assert not any(isinstance(found, DataError) for found in encoder.examples(rows, "conversation", "all-assistant"))
    assert len(rendered) == 4  # the system message, the call's name and its arguments, and what the tool answered


@pytest.mark.parametrize("stop", ["<|im_end|>", "<eos>"], ids=["ends-turns", "ends-texts"])
def test_header_behind_the_last_answer_is_not_learned(stop: str) -> None:
    """T7: a template that writes the header of an answer whether or not it is asked to."""
    always = driver.CHATML.partition("{% if")[0] + "{{ '<|im_start|>assistant\n' }}"
    encoder, right = chat(always, eos=stop), chat(driver.CHATML, eos=stop)
    for train_on in ("all-assistant", "last", "all"):
        assert talk(encoder, TALK, train_on) == talk(right, TALK, train_on)
    same = [{"role": "user", "content": "Ok"}, {"role": "assistant", "content": "Ok"}]
    assert talk(encoder, same) == talk(right, same)
    bare = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}{{ 'a: ' }}"
    assert talk(chat(bare, eos=stop), TALK) == f"~Yo\n~Ok\n{stop}"
    # Templates that have no header, or none of their own, keep all they write.
    assert talk(chat(MISTRAL, eos="<eos>"), same) == "~ Ok<eos>"


def test_cut_answers_of_a_pair_are_counted_once_each() -> None:
    encoder = chat(driver.CHATML, 50)
    begin = len(encoder.pair({"prompt": "Q", "chosen": "a", "rejected": "b"}).prompt_ids)
    row = {"prompt": "Q", "chosen": "y" * 60, "rejected": "n" * 70}
    pair = encoder.pair(row)
    assert pair.cuts == (begin + 62 - 50, begin + 72 - 50) and pair.cut == sum(pair.cuts)
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b"}, row]
    view = Pipeline(model=(tiny_model(), tiny_tokenizer())).align(method="dpo", data=rows, max_length=50).preview()
    assert view.totals["cut_rows"] == 2 and view.totals["cut_tokens"] == pair.cut
    assert [each.cut for each in view.rows] == [0, 0, *pair.cuts]


def test_errors_name_the_row_of_the_file(tmp_path: Path) -> None:
    """Whatever was shuffled and left out before it, in training as in the preview."""
    good, long = json.dumps({"messages": TALK}), json.dumps({"messages": [{**TALK[0], "content": "p" * 300}, TALK[1]]})
    wrong = json.dumps({"messages": [TALK[0], {**TALK[1], "weight": 0.5}]})
    model = (tiny_model(), tiny_tokenizer())
    file, folder = tmp_path / "rows.jsonl", tmp_path / "parts"
    file.write_text("\n".join([good, "{broken", good, good, long, good]))
    step: dict[str, Any] = {"max_length": 64, "max_steps": 1, "shuffle": True}
    view = Pipeline(model=model).sft(data=str(file), on_bad_row="skip", **step).preview(n=9)
    assert [(problem.row, problem.code) for problem in view.problems] == [(5, "no-targets")]
    assert sorted(row.number for row in view.rows) == [1, 3, 4, 6]

    file.write_text("\n".join([good, "{broken", good, good, wrong, good]))
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join([good] * 4))
    (folder / "b.jsonl").write_text("\n".join([good, good, wrong]))
    for data, bad, place in (
        (file, "skip", ("rows.jsonl", 5)),
        (folder, "error", ("b.jsonl", 3)),
        ([json.loads(line) for line in (good, good, wrong)], "error", ("list", 3)),
    ):
        name, row = place
        pipeline = Pipeline(model=model).sft(
            data=str(data) if isinstance(data, Path) else data, on_bad_row=bad, **{**step, "shuffle": data is file}
        )
        with pytest.raises(DataError) as caught:
            pipeline.run(tmp_path / f"run-{name}")
        assert caught.value.code == "turn-flag" and caught.value.message.startswith(f"{name} row {row}: ")
        assert caught.value.details["row"] == row and str(caught.value.details["file"]).endswith(name)
    view = Pipeline(model=model).sft(data=str(folder), max_length=64).preview()
    (problem,) = view.problems
    assert problem.row == 7 and problem.message.startswith("b.jsonl row 3: message 1 has weight=0.5")


def test_many_rows_at_once_equal_one_by_one() -> None:
    """Whatever the template and the row, errors included."""
    rows: list[dict[str, Any]] = [
        {"messages": TALK},
        {
            "messages": [
                {"role": "user", "content": "Ünïcödé 🙂 <|im_end|>"},
                {"role": "assistant", "content": "🙂" * 9},
            ]
        },
        {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]},
        {"messages": [{**TALK[0]}, {**TALK[1], "train": 3}]},
        {"messages": TALK[:2] * 4},
    ]
    for template, settings in ((driver.CHATML, {}), (LLAMA3, {"bos": True}), (MISTRAL, {"eos": "<eos>"}), (QWEN3, {})):
        encoder = chat(template, 200, **settings)
        together = encoder.examples(rows * 3, "conversation", "all-assistant")
        for row, found in zip(rows * 3, together, strict=True):
            # No memory of earlier rows, and no special token taken as a place to start from.
            alone = chat(template, 200, **settings)
            alone._anchor = re.compile(r"(?!)")
            if isinstance(found, DataError):
                with pytest.raises(DataError) as caught:
                    alone.example(row, "conversation", "all-assistant")
                assert caught.value.code == found.code
            else:
                assert alone.example(row, "conversation", "all-assistant") == found
