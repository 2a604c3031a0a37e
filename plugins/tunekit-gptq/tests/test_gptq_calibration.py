"""Which rows a model is calibrated on, and how they are rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import load_dataset
from tunekit.errors import StepError
from tunekit_gptq.calibration import Calibration, choose


@pytest.fixture(scope="module")
def chat_tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="module")
def plain_tokenizer(stories260k: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(stories260k)


def pick(tokenizer: Any, *data: Any, seed: int = 0, **limits: int) -> Calibration:
    limits = {"rows": 128, "tokens": 100_000, "max_length": 256, **limits}
    return choose([load_dataset(rows) for rows in data], tokenizer, seed=seed, **limits)


def test_the_seed_decides_and_nothing_else(chat_tokenizer: Any, stories: list[dict[str, Any]]) -> None:
    one, same, other = (pick(chat_tokenizer, stories, seed=seed, rows=8) for seed in (3, 3, 4))
    assert one.to_data() == same.to_data()
    assert one.sha256 != other.sha256
    assert {len(one.rows), len(other.rows)} == {8}


def test_messages_go_through_the_chat_template(chat_tokenizer: Any, stories: list[dict[str, Any]]) -> None:
    found = pick(chat_tokenizer, stories)
    assert found.template == "chat template"
    expected = {
        chat_tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in stories
    }
    ids = [chat_tokenizer(text, add_special_tokens=False)["input_ids"] for text in expected]
    assert sorted(found.rows + found.held_out) == sorted(ids)


def test_without_a_template_the_text_is_plain_with_begin_and_end(
    plain_tokenizer: Any, stories: list[dict[str, Any]]
) -> None:
    found = pick(plain_tokenizer, stories[:10])
    assert (found.template, found.template_sha256) == ("plain text", "")
    texts = {f"{row['prompt'][0]['content']}\n\n{row['completion'][0]['content']}" for row in stories[:10]}
    for ids in found.rows + found.held_out:
        assert ids[0] == plain_tokenizer.bos_token_id and ids.count(plain_tokenizer.bos_token_id) == 1
        assert ids[-1] == plain_tokenizer.eos_token_id
        assert plain_tokenizer.decode(ids, skip_special_tokens=True).strip() in texts


def test_preference_rows_give_the_chosen_answer(chat_tokenizer: Any) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Which of {n}?"}],
            "chosen": [{"role": "assistant", "content": f"the good one of {n}"}],
            "rejected": [{"role": "assistant", "content": f"the bad one of {n}"}],
        }
        for n in range(6)
    ]
    found = pick(chat_tokenizer, rows)
    texts = [chat_tokenizer.decode(ids) for ids in found.rows + found.held_out]
    assert len(texts) == 6
    assert all("good one" in text and "bad one" not in text for text in texts)


def test_held_out_rows_are_not_calibrated_on(chat_tokenizer: Any, stories: list[dict[str, Any]]) -> None:
    found = pick(chat_tokenizer, stories, stories)  # the same data twice: equal rows count once
    assert len(found.held_out) == 6  # a fifth of thirty
    assert not {tuple(ids) for ids in found.rows} & {tuple(ids) for ids in found.held_out}
    assert len(found.rows) + len(found.held_out) == len(stories)


def test_rows_come_from_every_data_set_in_turn(chat_tokenizer: Any, stories: list[dict[str, Any]]) -> None:
    texts = [{"text": f"Document number {n} about the sea and its {n} fish."} for n in range(40)]
    found = pick(chat_tokenizer, texts, stories, rows=10)
    assert sorted(source["rows"] for source in found.sources) == [5, 5]
    assert [source["schema"] for source in found.sources] == ["text", "prompt_completion"]
    assert all(len(source["fingerprint"]) == 64 for source in found.sources)


def test_a_long_document_becomes_several_rows_and_a_long_chat_is_cut(chat_tokenizer: Any) -> None:
    text = " ".join(f"The number {n} came to the house." for n in range(200))
    found = pick(chat_tokenizer, [{"text": text}], max_length=64)
    assert len(found.rows) > 10 and found.held_out
    assert max(map(len, found.rows)) == 64 and found.cut == 0
    chat = {"prompt": [{"role": "user", "content": "Count."}], "completion": [{"role": "assistant", "content": text}]}
    found = pick(chat_tokenizer, [chat], max_length=64)
    assert [len(ids) for ids in found.rows] == [64] and found.cut == 1


def test_tokens_limit_the_rows(chat_tokenizer: Any, stories: list[dict[str, Any]]) -> None:
    found = pick(chat_tokenizer, stories, tokens=100)
    assert found.tokens >= 100 > sum(map(len, found.rows[:-1]))


def test_no_usable_row_is_an_error(chat_tokenizer: Any) -> None:
    with pytest.raises(StepError) as caught:
        pick(chat_tokenizer)
    assert caught.value.code == "no-calibration"


def test_facts_are_json(chat_tokenizer: Any, stories: list[dict[str, Any]]) -> None:
    found = pick(chat_tokenizer, stories, rows=4)
    data = json.loads(json.dumps(found.to_data()))
    assert data["token_ids"] == found.rows
    assert data["rows"] == 4 and data["tokens"] == sum(map(len, found.rows))
