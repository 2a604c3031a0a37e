"""Every training file of the shared data loads with its path alone, with the row count its README states."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit.data import load_dataset
from tunekit.errors import DataError

FILES = [
    ("llamafactory/alpaca_en_demo.json", 999, "alpaca", "prompt_completion"),
    ("llamafactory/alpaca_zh_demo.json", 1000, "alpaca", "prompt_completion"),
    ("llamafactory/identity.json", 91, "alpaca", "prompt_completion"),
    ("llamafactory/glaive_toolcall_en_demo.json", 300, "sharegpt", "conversation"),
    ("llamafactory/glaive_toolcall_zh_demo.json", 300, "sharegpt", "conversation"),
    ("llamafactory/reason_tool_use_demo_50.jsonl", 50, "openai", "conversation"),
    ("llamafactory/dpo_en_demo.json", 150, "sharegpt_preference", "preference"),
    ("llamafactory/dpo_zh_demo.json", 300, "sharegpt_preference", "preference"),
    ("llamafactory/kto_en_demo.json", 150, "kto", "feedback"),
    ("llamafactory/c4_demo.jsonl", 300, "text", "text"),
    ("llamafactory/wiki_demo.txt", 18, "lines", "text"),
    ("hh-rlhf/harmless-base/test.jsonl.gz", 1157, "hh", "preference"),
    ("huatuo-med/llama_data.jsonl", 2000, "alpaca", "prompt_completion"),
    ("gsm8k/train.jsonl", 3000, "question_answer", "prompt_completion"),
    ("corpora/tinystories_sample.txt", 5, "separated", "text"),
    ("corpora/tinyshakespeare.txt", 498, "passages", "text"),
]


@pytest.mark.parametrize(("file", "rows", "form", "schema"), FILES)
def test_loads_with_its_path_alone(shared_data: Path, file: str, rows: int, form: str, schema: str) -> None:
    data = load_dataset(shared_data / file)
    assert (data.format, data.schema) == (form, schema)
    assert sum(1 for _ in data.rows()) == len(data) == rows
    assert data.bad_rows == []
    assert data.describe().startswith(f"{Path(file).name}: {form}")
    assert data.describe().endswith(f"{rows:,} rows")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("open-assistant/en_100_message.jsonl", "message trees"),
        ("open-assistant/oaast_rm_zh.json", "ranked answers"),
        ("mgsm/mgsm_zh.tsv", "without a header"),
        ("sst2/train.tsv", "without a header"),
    ],
)
def test_other_shapes_say_what_they_are(shared_data: Path, file: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(shared_data / file)
    assert caught.value.code == "unknown-columns"
    assert says in caught.value.message
    assert "columns=" in caught.value.fix


def test_a_file_without_header_is_named_by_position(shared_data: Path) -> None:
    data = load_dataset(
        shared_data / "mgsm/mgsm_zh.tsv", format="question_answer", columns={"question": "1", "answer": "2"}
    )
    assert len(data) == 125
    first = data.peek()[0]
    assert first["completion"] == [{"role": "assistant", "content": "18"}]
    assert first["prompt"][0]["content"].startswith("珍妮特")


def test_alpaca_row_is_exact(shared_data: Path) -> None:
    row = load_dataset(shared_data / "llamafactory/alpaca_en_demo.json").peek()[0]
    assert row["prompt"] == [{"role": "user", "content": "Describe a process of making crepes."}]
    assert [message["role"] for message in row["completion"]] == ["assistant"]
    assert row["completion"][0]["content"].startswith("Making crepes is an easy and delicious process!")


def test_description_with_a_limit(shared_data: Path) -> None:
    data = load_dataset(shared_data / "llamafactory/alpaca_en_demo.json", limit=64)
    assert data.describe() == "alpaca_en_demo.json: alpaca -> prompt_completion, 64 of 999 rows"
    assert len(data) == len(list(data)) == 64


def test_tool_calls_are_structured(shared_data: Path) -> None:
    row = load_dataset(shared_data / "llamafactory/glaive_toolcall_en_demo.json").peek(1)[0]
    assert row["tools"][0]["type"] == "function"
    assert row["tools"][0]["function"]["name"] == "search_recipes"
    call = row["messages"][3]
    assert call["role"] == "assistant"
    assert call["content"] == ""
    assert call["tool_calls"] == [
        {
            "type": "function",
            "function": {
                "name": "search_recipes",
                "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]},
            },
        }
    ]
    assert row["messages"][4]["role"] == "tool"


def test_reasoning_parts_are_kept_apart(shared_data: Path) -> None:
    data = load_dataset(shared_data / "llamafactory/reason_tool_use_demo_50.jsonl")
    answers = [m for row in data.rows() for m in row["messages"] if m["role"] == "assistant"]
    assert len(answers) == 112
    assert all(m["reasoning_content"] for m in answers)
    assert sum(len(m.get("tool_calls", ())) for m in answers) == 41 + 9 * 2 + 3 * 3


def test_transcripts_split_where_they_part(shared_data: Path) -> None:
    rows = list(load_dataset(shared_data / "hh-rlhf/harmless-base/test.jsonl.gz").rows())
    assert all(row["prompt"][-1]["role"] == "user" for row in rows[:40])
    assert all({m["role"] for m in row["chosen"] + row["rejected"]} == {"assistant"} for row in rows)
    assert rows[43]["chosen"][0]["content"] == ""  # people preferred no answer at all


def test_thumbs_down_is_no_training_example(shared_data: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(shared_data / "llamafactory/kto_en_demo.json", accepts=("prompt_completion", "conversation"))
    assert caught.value.code == "wrong-shape"
    assert "feedback" in caught.value.message


def test_preference_data_is_refused_for_sft(shared_data: Path) -> None:
    with pytest.raises(DataError, match="preference rows"):
        load_dataset(shared_data / "llamafactory/dpo_en_demo.json", accepts=("prompt_completion", "conversation"))


def test_labels(shared_data: Path) -> None:
    labels = [row["label"] for row in load_dataset(shared_data / "llamafactory/kto_en_demo.json").rows()]
    assert (labels.count(True), labels.count(False)) == (75, 75)


def test_text_files_lose_nothing(shared_data: Path) -> None:
    path = shared_data / "corpora/tinyshakespeare.txt"
    whole = path.read_text(encoding="utf-8")
    rows = [row["text"] for row in load_dataset(path).rows()]
    assert "".join("".join(rows).split()) == "".join(whole.split())
    assert 2000 <= sum(map(len, rows)) / len(rows) <= 3000
    one = load_dataset(path, format="document")
    assert [row["text"] for row in one.rows()] == [whole.strip("\n")]


def test_markers_are_not_part_of_documents(shared_data: Path) -> None:
    rows = list(load_dataset(shared_data / "corpora/tinystories_sample.txt").rows())
    assert all("<|endoftext|>" not in row["text"] for row in rows)
    assert rows[0]["text"].startswith("Once upon a time there was a little boy named Ben.")
