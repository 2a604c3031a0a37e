"""Every training file of the shared data loads with its path alone, with the row count its README states."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunekit.data import label_counts, label_names, load_dataset
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


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(("file", "rows", "form", "schema"), FILES)
def test_loads_with_its_path_alone(shared_data: Path, file: str, rows: int, form: str, schema: str) -> None:
    data = load_dataset(shared_data / file)
    assert (data.format, data.schema) == (form, schema)
    assert sum(1 for _ in data.rows()) == len(data) == rows
    assert data.bad_rows == []
    assert data.describe().startswith(f"{Path(file).name}: {form}")
    assert data.describe().endswith(f"{rows:,} rows")


SFT = ("prompt_completion", "conversation", "text")
NUMBERED = [
    *((f"sst2/{name}.tsv", rows, "classification") for name, rows in (("train", 6920), ("dev", 872), ("test", 911))),
    *((f"poem-sentiment/{n}.tsv", rows, "classification") for n, rows in (("train", 892), ("dev", 105), ("test", 104))),
    *((f"banking77/{name}.csv", rows, "classification") for name, rows in (("train", 10_003), ("test", 1540))),
    *(
        (f"stsb/stsb-{name}.csv", rows, "regression")
        for name, rows in (("en-train", 5749), ("en-dev", 1500), ("en-test", 690), ("zh-dev", 1500))
    ),
    *(
        (f"wnut17/{name}.conll", rows, "token_classification")
        for name, rows in (("wnut17train", 3394), ("emerging.dev", 1009), ("emerging.test", 644))
    ),
    *(
        (f"ncbi-disease/{name}.tsv", rows, "token_classification")
        for name, rows in (("train", 5432), ("devel", 923), ("test", 470))
    ),
]


@pytest.mark.parametrize(("file", "rows", "schema"), NUMBERED)
def test_task_files_load_with_and_without_a_step(shared_data: Path, file: str, rows: int, schema: str) -> None:
    """Most have no header: what the columns are is seen from their values."""
    alone, asked = load_dataset(shared_data / file), load_dataset(shared_data / file, accepts=(schema,))
    assert (alone.schema, asked.schema, alone.fingerprint()) == (schema, schema, asked.fingerprint())
    assert sum(1 for _ in asked.rows()) == rows
    with pytest.raises(DataError, match="which this step does not take") as caught:
        load_dataset(shared_data / file, accepts=SFT)
    assert caught.value.code == "wrong-shape" and caught.value.fix


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("sst2/dev.tsv", {"text": "one long string of cliches", "label": "0"}),
        ("poem-sentiment/dev.tsv", {"text": "to water, cloudlike on the bush afar,", "label": "0"}),
        ("banking77/train.csv", {"text": "I am still waiting on my card?", "label": "card_arrival"}),
        (
            "stsb/stsb-en-dev.csv",
            {
                "text": "A man with a hard hat is dancing.",
                "text_pair": "A man wearing a hard hat is dancing.",
                "score": 5.0,
            },
        ),
        (
            "stsb/stsb-zh-dev.csv",
            {"text": "一个戴着硬帽子的人在跳舞。", "text_pair": "一个戴着硬帽的人在跳舞。", "score": 5.0},
        ),
        (
            "ncbi-disease/devel.tsv",
            {
                "tokens": ["BRCA1", "is", "secreted", "and", "exhibits", "properties", "of", "a", "granin", "."],
                "tags": ["O"] * 10,
            },
        ),
        (
            "wnut17/emerging.dev.conll",
            {
                "tokens": [
                    "Stabilized",
                    "approach",
                    "or",
                    "not",
                    "?",
                    "That",
                    "\xb4",
                    "s",
                    "insane",
                    "and",
                    "good",
                    ".",
                ],
                "tags": ["O"] * 12,
            },
        ),
    ],
)
def test_first_rows_of_task_files(shared_data: Path, file: str, row: dict[str, Any]) -> None:
    assert load_dataset(shared_data / file).peek() == [row]


@pytest.mark.parametrize(
    ("file", "labels"),
    [
        ("poem-sentiment/train.tsv", {"-1": 155, "0": 555, "1": 133, "2": 49}),
        ("sst2/train.tsv", {"0": 3310, "1": 3610}),
    ],
)
def test_labels_of_files_are_numbers_in_order(shared_data: Path, file: str, labels: dict[str, int]) -> None:
    counted = label_counts(load_dataset(shared_data / file))
    assert list(counted.items()) == list(labels.items())


def test_labels_of_tagged_files_start_with_outside(shared_data: Path) -> None:
    assert label_names(load_dataset(shared_data / "ncbi-disease/test.tsv")) == ["O", "B-Disease", "I-Disease"]
    names = label_names(load_dataset(shared_data / "wnut17/wnut17train.conll"))
    kinds = ["corporation", "creative-work", "group", "location", "person", "product"]
    assert names == ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    assert len(label_names(load_dataset(shared_data / "banking77/train.csv"))) == 77


def test_message_trees_are_read_as_the_step_needs_them(shared_data: Path) -> None:
    """439 replies of 67 trees are ranked, in 145 groups; 220 answers have more thumbs up than down, 66 fewer."""
    path = shared_data / "open-assistant/en_100_message.jsonl"
    with pytest.raises(DataError, match=r"can be read as ranked.* and as feedback.* and as conversation") as caught:
        load_dataset(path)
    assert caught.value.code == "ambiguous-format"
    assert caught.value.fix == 'write format="tree_ranked" or format="tree_feedback" or format="tree_conversation"'
    root = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    prompt, answers = [user(root["text"])], [bot(reply["text"]) for reply in root["replies"]]

    ranked = list(load_dataset(path, accepts=("ranked",)).rows())
    assert ranked[0] == {"prompt": prompt, "completions": [[answer] for answer in answers], "ranks": [0, 1, 2]}
    assert len(ranked) == 145
    assert sum(len(row["ranks"]) for row in ranked) == 439
    assert sum(len(row["prompt"]) > 1 for row in ranked) > 50

    pairs = list(load_dataset(path, accepts=("preference",)).rows())
    sizes = Counter(len(row["ranks"]) for row in ranked)
    assert len(pairs) == sum(groups * min(n * (n - 1) // 2, 10) for n, groups in sizes.items()) == 464
    assert pairs[:3] == [
        {"prompt": prompt, "chosen": [answers[better]], "rejected": [answers[worse]]}
        for better, worse in ((0, 1), (0, 2), (1, 2))
    ]

    thumbs = list(load_dataset(path, accepts=("feedback",)).rows())
    assert Counter(row["label"] for row in thumbs) == {True: 220, False: 66}
    assert all(row["prompt"][-1]["role"] == "user" and len(row["completion"]) == 1 for row in thumbs)

    talks = list(load_dataset(path, accepts=SFT).rows())
    assert len(talks) == 67
    assert talks[0] == {"messages": [*prompt, answers[0]]}
    assert all(row["messages"][-1]["role"] == "assistant" for row in talks)
    down = {row["completion"][0]["content"] for row in thumbs if not row["label"]}
    assert not down & {message["content"] for row in talks for message in row["messages"]}


def test_answers_best_first_become_rankings_and_pairs(shared_data: Path) -> None:
    path = shared_data / "open-assistant/oaast_rm_zh.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    for accepts in ((), ("ranked",)):
        ranked = load_dataset(path, accepts=accepts)
        assert ranked.describe() == "oaast_rm_zh.json: best_first -> ranked (output is ranked, best first), 320 rows"
    rows = list(ranked.rows())
    assert rows[0] == {
        "prompt": [user(raw[0]["instruction"])],
        "completions": [[bot(answer)] for answer in raw[0]["output"]],
        "ranks": [0, 1, 2, 3],
    }
    talk = next(number for number, row in enumerate(raw) if row["history"])
    assert [message["content"] for message in rows[talk]["prompt"]] == [
        *(text for turn in raw[talk]["history"] for text in turn),
        raw[talk]["instruction"],
    ]
    pairs = list(load_dataset(path, accepts=("preference",)).rows())
    assert len(pairs) == 777  # at most ten of a row, and none of two equal answers
    assert pairs[0]["chosen"] == rows[0]["completions"][0] and pairs[5]["rejected"] == rows[0]["completions"][3]
    for accepts in (SFT, ("feedback",)):
        with pytest.raises(DataError, match="holds ranked rows"):
            load_dataset(path, accepts=accepts)


def test_a_table_of_questions_and_numbers_can_be_two_things(shared_data: Path) -> None:
    path = shared_data / "mgsm/mgsm_zh.tsv"
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    assert caught.value.code == "ambiguous-format"
    assert "format=\"question_answer\", columns={'question': '1', 'answer': '2'}" in caught.value.fix
    assert "format=\"regression\", columns={'text': '1', 'score': '2'}" in caught.value.fix
    data = load_dataset(path, accepts=SFT)
    assert data.describe().endswith("(no header; question: column 1, answer: column 2), 125 rows")
    same = load_dataset(path, format="question_answer", columns={"question": "1", "answer": "2"})
    assert list(data.rows()) == list(same.rows()) and len(same) == 125
    assert data.peek()[0]["completion"] == [bot("18")]
    assert data.peek()[0]["prompt"][0]["content"].startswith("珍妮特")
    assert load_dataset(path, accepts=("regression",)).peek()[0]["score"] == 18.0


@pytest.mark.parametrize(
    ("name", "rows", "start"),
    [
        ("lunyu", 20, "学而篇\n子曰"),
        ("mengzi", 14, "梁惠王上\n孟子見梁惠王。"),
        ("shijing", 305, "关雎\n关关雎鸠"),
        ("songci300", 280, "湘春夜月\n黄孝迈\n近清明。\n"),
        ("tangshi300", 366, "在嶽詠蟬\n駱賓王\n西陸蟬聲唱"),
    ],
)
def test_poems_are_texts_under_their_titles(shared_data: Path, name: str, rows: int, start: str) -> None:
    for accepts in ((), ("text",)):
        data = load_dataset(shared_data / f"corpora/chinese-poetry/{name}.json", accepts=accepts)
        assert (data.format, data.schema, len(data)) == ("paragraphs", "text", rows)
    assert data.peek()[0]["text"].startswith(start)


def test_corpora_load_with_their_path_alone(shared_data: Path) -> None:
    for path in [shared_data / "corpora/wikitext-2/valid.txt", *(shared_data / "corpora/state_union").glob("*.txt")]:
        whole = path.read_text(encoding="utf-8", errors="strict")
        rows = [row["text"] for row in load_dataset(path, accepts=("text",)).rows()]
        assert "".join("".join(rows).split()) == "".join(whole.split())


@pytest.mark.parametrize("name", ["dpo_en_demo", "dpo_zh_demo"])
def test_pairs_are_exact(shared_data: Path, name: str) -> None:
    path = shared_data / f"llamafactory/{name}.json"
    raw = json.loads(path.read_text(encoding="utf-8"))[0]
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in raw["conversations"]]
    answers = {side: [bot(raw[side]["value"])] for side in ("chosen", "rejected")}
    assert load_dataset(path, accepts=("preference",)).peek() == [{"prompt": messages, **answers}]


def test_other_first_rows_are_exact(shared_data: Path) -> None:
    """Against the raw files, read by hand."""

    def first(name: str) -> dict[str, Any]:
        text = (shared_data / name).read_text(encoding="utf-8")
        return dict(json.loads(text)[0] if name.endswith(".json") else json.loads(text.splitlines()[0]))

    for name in ("alpaca_zh_demo.json", "identity.json"):
        raw = first(f"llamafactory/{name}")
        made = {"prompt": [user(raw["instruction"])], "completion": [bot(raw["output"])]}
        assert load_dataset(shared_data / "llamafactory" / name).peek() == [made]
    raw = first("huatuo-med/llama_data.jsonl")
    asked = "\n\n".join(filter(None, (raw["instruction"], raw["input"])))
    assert load_dataset(shared_data / "huatuo-med/llama_data.jsonl").peek() == [
        {"prompt": [user(asked)], "completion": [bot(raw["output"])]}
    ]
    raw = first("gsm8k/train.jsonl")
    assert load_dataset(shared_data / "gsm8k/train.jsonl").peek() == [
        {"prompt": [user(raw["question"])], "completion": [bot(raw["answer"])]}
    ]
    raw = first("llamafactory/c4_demo.jsonl")
    assert load_dataset(shared_data / "llamafactory/c4_demo.jsonl").peek() == [{"text": raw["text"]}]
    raw = first("llamafactory/kto_en_demo.json")
    assert load_dataset(shared_data / "llamafactory/kto_en_demo.json").peek() == [
        {"prompt": raw["messages"][:-1], "completion": raw["messages"][-1:], "label": raw["label"]}
    ]


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
