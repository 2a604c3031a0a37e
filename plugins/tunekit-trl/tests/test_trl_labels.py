"""Exact tokens and labels: what is learned, and what is only read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from tunekit.errors import DataError
from tunekit.plugins import ModelFacts
from tunekit.testing.beside import beside
from tunekit_trl.encoding import IGNORED, Encoder, encoder_from
from tunekit_trl.rows import encoder_for

driver = beside(__file__, "trl_driver")

CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Earlier assistant turns lose their thoughts, only the last keeps them: rendering the messages up to an earlier turn
# gives another text than the whole conversation has there.
REWRITES_HISTORY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2_LIKE = (
    "{% for m in messages %}{% if m.role == 'user' %}<bos>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} <eos>{% endif %}{% endfor %}"
)
NO_STOP = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ok"},
]


def encoder(tokenizer: Any, max_length: int = 256) -> Encoder:
    return Encoder(tokenizer, max_length)


def shown(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def learned(tokenizer: Any, example: Any) -> str:
    """The learned tokens as text, with ``~`` for every run of tokens that is only read."""
    text, reading = "", False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label == IGNORED:
            text += "" if reading else "~"
            reading = True
        else:
            assert label == token
            text += shown(tokenizer, [token])
            reading = False
    return text


@pytest.mark.parametrize("pad", ["<pad>", "<|im_end|>"], ids=["pad-differs", "pad-is-eos"])
def test_chat_prompt_and_completion_token_by_token(pad: str) -> None:
    tokenizer = driver.byte_tokenizer(pad=pad)
    assert (tokenizer.pad_token_id == tokenizer.eos_token_id) is (pad == "<|im_end|>")
    names = ("<|im_start|>", "<|im_end|>", "H", "Y", "o", "Ċ")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    example = encoder(tokenizer).example({"prompt": "H", "completion": "Yo"}, "prompt_completion", "completion")
    role_user = tokenizer.convert_tokens_to_ids(list("user"))
    role_assistant = tokenizer.convert_tokens_to_ids(list("assistant"))
    prompt = [
        ids["<|im_start|>"],
        *role_user,
        ids["Ċ"],
        ids["H"],
        ids["<|im_end|>"],
        ids["Ċ"],
        ids["<|im_start|>"],
        *role_assistant,
        ids["Ċ"],
    ]
    answer = [ids["Y"], ids["o"], ids["<|im_end|>"], ids["Ċ"]]
    assert example.input_ids == prompt + answer
    assert example.labels == [IGNORED] * len(prompt) + answer
    assert example.targets == 4

    # The real end-of-turn token stays a target, even when it is the padding token as well.
    short = encoder(tokenizer).example({"prompt": "H", "completion": "Y"}, "prompt_completion", "completion")
    assert short.labels == [IGNORED] * len(prompt) + [ids["Y"], ids["<|im_end|>"], ids["Ċ"]]


def test_every_assistant_turn_is_learned_with_its_end() -> None:
    tokenizer = driver.byte_tokenizer()
    row = {"messages": TALK}
    example = encoder(tokenizer).example(row, "conversation", "all-assistant")
    assert shown(tokenizer, example.input_ids) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nOk<|im_end|>\n"
    )
    assert learned(tokenizer, example) == "~Yo<|im_end|>\n~Ok<|im_end|>\n"
    last = encoder(tokenizer).example(row, "conversation", "last")
    assert learned(tokenizer, last) == "~Ok<|im_end|>\n"
    assert last.input_ids == example.input_ids
    everything = encoder(tokenizer).example(row, "conversation", "all")
    assert everything.labels == everything.input_ids == example.input_ids


def test_labels_equal_those_of_generation_markers() -> None:
    """TRL finds assistant turns by markers in the template; ours are found without, and are the same."""
    marked = driver.byte_tokenizer(template=CHATML_MARKED)
    reference = marked.apply_chat_template(TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    example = encoder(driver.byte_tokenizer()).example({"messages": TALK}, "conversation", "all-assistant")
    assert example.input_ids == reference["input_ids"]
    assert [int(label != IGNORED) for label in example.labels] == reference["assistant_masks"]


def test_labels_equal_those_of_trl_on_prompt_completion() -> None:
    from trl import SFTConfig, SFTTrainer

    tokenizer = driver.byte_tokenizer()
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in driver.PAIRS
    ]
    trainer = SFTTrainer(
        driver.tiny_model(),
        args=SFTConfig(output_dir="unused", use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    ours = [encoder(tokenizer).example(row, "prompt_completion", "completion") for row in rows]
    for reference, example in zip(trainer.train_dataset, ours, strict=True):
        assert reference["input_ids"] == example.input_ids
        assert reference["labels"] == example.labels


def test_template_that_rewrites_earlier_turns_is_found_by_content() -> None:
    tokenizer = driver.byte_tokenizer(template=REWRITES_HISTORY)
    messages = [dict(message) for message in TALK]
    messages[2] |= {"content": " Yo ", "reasoning_content": "A"}
    messages[4]["reasoning_content"] = "B"
    example = encoder(tokenizer).example({"messages": messages}, "conversation", "all-assistant")
    assert "<think>B</think>Ok" in shown(tokenizer, example.input_ids)
    assert "A" not in shown(tokenizer, example.input_ids).replace("assistant", "")
    assert learned(tokenizer, example) == "~Yo<|im_end|>\n~<think>B</think>Ok<|im_end|>\n"


def test_turn_that_cannot_be_found_is_an_error() -> None:
    tokenizer = driver.byte_tokenizer(
        template="{% for m in messages %}{{ m.content | upper if loop.last else m.content | length }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(DataError) as caught:
        encoder(tokenizer).example({"messages": TALK}, "conversation", "all-assistant")
    assert caught.value.code == "template-boundary"


def test_template_that_refuses_the_roles_is_an_error() -> None:
    tokenizer = driver.byte_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="roles must alternate") as caught:
        encoder(tokenizer).example({"messages": TALK}, "conversation", "all-assistant")
    assert caught.value.code == "chat-template"


def test_exactly_one_bos_with_and_without_a_template() -> None:
    templated = driver.byte_tokenizer(template=LLAMA2_LIKE, eos="<eos>", bos=True)
    example = encoder(templated).example({"prompt": "a", "completion": "b"}, "prompt_completion", "completion")
    assert shown(templated, example.input_ids) == "<bos>[INST] a [/INST] b <eos>"
    assert learned(templated, example) == "~ b <eos>"

    plain = driver.byte_tokenizer(template=None, eos="<eos>", bos=True)
    for text in ("ab", "<bos>ab"):
        example = encoder(plain).example({"text": text}, "text", "all")
        assert shown(plain, example.input_ids) == "<bos>ab<eos>"
        assert example.labels[1:] == example.input_ids[1:]


def test_a_token_without_an_embedding_is_an_error() -> None:
    tokenizer = driver.byte_tokenizer(template=None, eos="<eos>")
    model = driver.tiny_model()
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<new-{number}>" for number in range(rows + 1 - len(tokenizer))])
    last = tokenizer.convert_ids_to_tokens(rows)
    made = encoder_for(model, tokenizer, 64)
    assert made.example({"text": "ab"}, "text", "all").targets > 0
    with pytest.raises(DataError, match=re.escape(last)) as found:
        made.example({"prompt": "a", "completion": f"b {last}"}, "prompt_completion", "completion")
    assert found.value.code == "vocabulary"


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_plain_text_ends_with_a_learned_end_of_text(pad: str) -> None:
    tokenizer = driver.byte_tokenizer(template=None, eos="<eos>", pad=pad)
    example = encoder(tokenizer).example({"prompt": "2+2=", "completion": "4"}, "prompt_completion", "completion")
    assert shown(tokenizer, example.input_ids) == "2+2=4<eos>"
    assert learned(tokenizer, example) == "~4<eos>"
    written = encoder(tokenizer).example({"prompt": "2+2=", "completion": "4<eos>"}, "prompt_completion", "completion")
    assert written.input_ids == example.input_ids
    assert learned(tokenizer, encoder(tokenizer).example({"text": "hello"}, "text", "all")) == "hello<eos>"
    both = encoder(tokenizer).example({"prompt": "2+2=", "completion": "4"}, "prompt_completion", "all")
    assert learned(tokenizer, both) == "2+2=4<eos>"


def test_plain_conversations() -> None:
    tokenizer = driver.byte_tokenizer(template=None, eos="<eos>")
    one = encoder(tokenizer).example({"messages": TALK[1:3]}, "conversation", "all-assistant")
    assert shown(tokenizer, one.input_ids) == "Hi\n\nYo<eos>"
    assert learned(tokenizer, one) == "~Yo<eos>"
    several = encoder(tokenizer).example({"messages": TALK}, "conversation", "all-assistant")
    assert shown(tokenizer, several.input_ids) == (
        "System: S\n\nUser: Hi\n\nAssistant: Yo<eos>\n\nUser: Bye\n\nAssistant: Ok<eos>"
    )
    assert learned(tokenizer, several) == "~ Yo<eos>~ Ok<eos>"
    # A pair with the same history is written the same way.
    pair = encoder(tokenizer).example({"prompt": TALK[:2], "completion": TALK[2:3]}, "prompt_completion", "completion")
    assert shown(tokenizer, pair.input_ids) == "System: S\n\nUser: Hi\n\nAssistant: Yo<eos>"
    assert learned(tokenizer, pair) == "~ Yo<eos>"
    with pytest.raises(DataError) as caught:
        encoder(tokenizer).example({"messages": TALK, "tools": [{"type": "function"}]}, "conversation", "all-assistant")
    assert caught.value.code == "tools-without-template"


def test_template_without_a_stop_token_gets_one() -> None:
    tokenizer = driver.byte_tokenizer(template=NO_STOP, eos="<eos>")
    made = encoder(tokenizer)
    example = made.example({"prompt": "a", "completion": "b"}, "prompt_completion", "completion")
    assert learned(tokenizer, example) == "~b\n<eos>"
    assert made.appended_stops == 1
    mute = driver.byte_tokenizer(template=NO_STOP, eos="<eos>")
    mute.eos_token = None
    with pytest.raises(DataError) as caught:
        encoder(mute).example({"prompt": "a", "completion": "b"}, "prompt_completion", "completion")
    assert caught.value.code == "no-eos"


def test_merge_across_the_boundary_keeps_the_prompt_as_it_is_used() -> None:
    """The tokenizer would write the blank and the 4 as one token; a user's prompt ends with the blank alone."""
    tokenizer = driver.byte_tokenizer(template=None, eos="<eos>", merges=[("Ġ", "4")])
    joint = tokenizer("= 4", add_special_tokens=False)["input_ids"]
    assert len(joint) == 2
    example = encoder(tokenizer).example({"prompt": "= ", "completion": "4"}, "prompt_completion", "completion")
    prompt = tokenizer("= ", add_special_tokens=False)["input_ids"]
    assert example.input_ids[: len(prompt)] == prompt
    assert learned(tokenizer, example) == "~4<eos>"
    assert example.boundary == "split"
    whole = encoder(tokenizer).example({"prompt": "=", "completion": " 4"}, "prompt_completion", "completion")
    assert whole.boundary == "exact" and whole.input_ids == [*joint, tokenizer.eos_token_id]


def test_cut_rows_are_counted_and_rows_without_targets_refused() -> None:
    tokenizer = driver.byte_tokenizer(template=None, eos="<eos>")
    made = encoder(tokenizer, 8)
    example = made.example({"prompt": "12345", "completion": "abcdef"}, "prompt_completion", "completion")
    assert shown(tokenizer, example.input_ids) == "12345abc"
    assert example.cut == 4 and example.targets == 3
    with pytest.raises(DataError) as caught:
        made.example({"prompt": "12345678", "completion": "abc"}, "prompt_completion", "completion")
    assert caught.value.code == "no-targets"
    assert "max_length=12" in caught.value.fix


def test_a_fix_never_asks_for_more_tokens_than_the_model_has_positions() -> None:
    row = {"prompt": "p" * 100, "completion": "abc"}
    pair = {"prompt": "Q:", "chosen": "a" * 100 + "b", "rejected": "a" * 100 + "c"}

    def fixes(positions: int | None, limit: int) -> list[str]:
        made = encoder_from(driver.byte_tokenizer(None), ModelFacts(positions=positions), limit)
        fixes = []
        for ask in (lambda: made.example(row, "prompt_completion", "completion"), lambda: made.pair(pair)):
            with pytest.raises(DataError) as caught:
                ask()
            assert "skip" in caught.value.fix
            fixes.append(caught.value.fix)
        return fixes

    for positions, limit in ((None, 20), (200, 20)):
        assert all(re.match(r"max_length=10[4-6], or", fix) for fix in fixes(positions, limit))
    assert all(fix.startswith("max_length=64 (the model has 64 positions) if") for fix in fixes(64, 20))
    for fix in fixes(64, 64) + fixes(64, 2048):
        assert fix.startswith("shorten the row (the model has 64 positions)") and "max_length" not in fix


def test_train_on_must_fit_the_rows() -> None:
    made = encoder(driver.byte_tokenizer())
    assert made.train_on("prompt_completion", None) == "completion"
    assert made.train_on("conversation", None) == "all-assistant"
    assert made.train_on("text", None) == "all"
    for asked in ("all-assistant", "completion", "last", "all"):
        assert made.train_on("conversation", asked) == made.train_on("prompt_completion", asked) == asked
    for asked in ("all-assistant", "completion", "last"):
        with pytest.raises(DataError) as caught:
            made.train_on("text", asked)
        assert caught.value.code == "train-on"


def test_preference_pairs() -> None:
    tokenizer = driver.byte_tokenizer()
    pair = encoder(tokenizer).pair({"prompt": "Q", "chosen": "good", "rejected": "bad"})
    assert shown(tokenizer, pair.prompt_ids) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert shown(tokenizer, pair.chosen_ids) == "good<|im_end|>\n"
    assert shown(tokenizer, pair.rejected_ids) == "bad<|im_end|>\n"
    empty = encoder(tokenizer).pair({"prompt": "Q", "chosen": "good", "rejected": ""})
    assert shown(tokenizer, empty.rejected_ids) == "<|im_end|>\n"

    plain = driver.byte_tokenizer(template=None, eos="<eos>", bos=True)
    pair = encoder(plain).pair({"prompt": "Q:", "chosen": "good", "rejected": ""})
    assert shown(plain, pair.prompt_ids) == "<bos>Q:"
    assert shown(plain, pair.chosen_ids) == "good<eos>" and shown(plain, pair.rejected_ids) == "<eos>"
    cut = encoder(plain, 6).pair({"prompt": "Q:", "chosen": "abcdef", "rejected": "xyz"})
    assert shown(plain, cut.chosen_ids) == "abc" and shown(plain, cut.rejected_ids) == "xyz"
    assert cut.cut == 5
    with pytest.raises(DataError) as caught:
        encoder(plain, 5).pair({"prompt": "Q:", "chosen": "abc", "rejected": "abd"})
    assert caught.value.code == "equal-answers"
    with pytest.raises(DataError) as caught:
        encoder(plain, 3).pair({"prompt": "Q:", "chosen": "abc", "rejected": "xyz"})
    assert caught.value.code == "no-targets"


def test_metaspace_tokenizer_of_a_real_model(stories260k: Path) -> None:
    """A tokenizer that writes a blank in front of every text: sides tokenized apart would gain one."""
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    made = encoder(tokenizer)
    example = made.example(
        {"prompt": "Once upon a time", "completion": ", there was a cat."}, "prompt_completion", "completion"
    )
    assert example.input_ids[0] == tokenizer.bos_token_id and example.input_ids.count(tokenizer.bos_token_id) == 1
    assert example.input_ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert example.input_ids == [*tokenizer("Once upon a time, there was a cat.")["input_ids"], tokenizer.eos_token_id]
    assert example.boundary == "exact"
    # "hel" + "lo" ends inside of a token; the text must not change to find a boundary.
    cut = made.example({"prompt": "She said hel", "completion": "lo to him."}, "prompt_completion", "completion")
    text = tokenizer.decode(cut.input_ids, skip_special_tokens=True)
    assert text == "She said hello to him."
    assert cut.boundary in ("exact", "merged")
