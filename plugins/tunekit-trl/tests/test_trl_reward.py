"""Reward models: what is read where, what is learned, what is saved, and how good the rewards are."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM

from tunekit.cancel import CancelToken
from tunekit.data import load_dataset
from tunekit.errors import DataError, OptionsError, RunCancelled, StepError
from tunekit.plugins import LoadedModel, ModelFacts, PreviewContext, hf
from tunekit.testing.beside import beside
from tunekit_peft.options import LoraOptions
from tunekit_trl.encoding import Encoder
from tunekit_trl.reward import RECORD, RewardTrainer
from tunekit_trl.reward_head import with_reward_head
from tunekit_trl.reward_model import RewardModel
from tunekit_trl.reward_options import RewardModelOptions, RewardOptions
from tunekit_trl.reward_preview import reward as preview
from tunekit_trl.reward_quality import calibration, compared_quality, rated_quality
from tunekit_trl.reward_rows import encode_answers

reward_driver = beside(__file__, "reward_driver")
driver = reward_driver.driver
ACCEPTS = reward_driver.ACCEPTS
PAIRS = reward_driver.PAIRS
RANKED = reward_driver.RANKED
RATED = reward_driver.RATED
THUMBS = reward_driver.THUMBS
context = reward_driver.context
losses = reward_driver.losses
reward_model = reward_driver.reward_model


def run(folder: Path, rows: Any, *, held: Any = None, lora: LoraOptions | None = None, **options: Any) -> Any:
    """Artifact and context of one reward step on a tiny model."""
    made = RewardOptions(**{"batch_size": 4, "learning_rate": 3e-3, "epochs": 3.0, **options})
    ctx = context(folder, rows, made, held=held, lora=lora)
    return RewardTrainer().run(ctx), ctx


def test_rewards_are_read_behind_the_end_of_an_answer(tmp_path: Path) -> None:
    """T6: with a padding token that is the end-of-text token, transformers reads a score before the latter, so that an
    answer that ends is one that does not. The reward model gets another padding token, and reads it where its own
    forward, padded, does."""
    tokenizer = driver.byte_tokenizer(pad="<|im_end|>", template=None)
    model = reward_model(tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and model.config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer("red")["input_ids"]
    ended = [*ids, tokenizer.eos_token_id]
    scorer = hf.ScoreModel(model, [hf.PromptGroup([], [ended])])
    rewards = scorer.scores([hf.PromptGroup(ids[:1], [ids[1:], ended[1:]])])[:, 0].tolist()
    assert abs(rewards[0] - rewards[1]) > 1e-3
    with torch.no_grad():
        padded = torch.tensor(
            [[*ids, tokenizer.pad_token_id, tokenizer.pad_token_id], [*ended, tokenizer.pad_token_id]]
        )
        assert model(input_ids=padded).logits[:, 0].tolist() == pytest.approx(rewards, abs=1e-5)
        model.config.pad_token_id = tokenizer.eos_token_id
        before = model(input_ids=torch.tensor([ended])).logits.item()
    assert before == pytest.approx(rewards[0], abs=1e-5)


@pytest.mark.parametrize("objective", ["bradley-terry", "plackett-luce"])
def test_accumulation_changes_nothing(objective: str, tmp_path: Path) -> None:
    """T1: five lists of different lengths and numbers of pairs at once, or one after the other."""
    common = {"objective": objective, "epochs": 4.0, "center_rewards_coefficient": 0.01}
    _, whole = run(tmp_path / "whole", RANKED, batch_size=5, **common)
    _, cut = run(tmp_path / "cut", RANKED, batch_size=1, gradient_accumulation=5, **common)
    assert len(losses(whole)) == 4 and losses(whole)[-1] < losses(whole)[0]
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)


@pytest.fixture(scope="module", params=[None, LoraOptions(r=4)], ids=["full", "lora"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reward model trained on twelve pairs and measured on four."""
    folder = tmp_path_factory.mktemp("reward")
    rows = driver.PREFERENCES
    artifact, ctx = run(folder, rows[:12], held=rows[12:], lora=request.param, epochs=4.0, learning_rate=1e-2)
    return artifact, ctx, request.param


def test_learns_and_is_measured_on_held_out_pairs(trained: Any) -> None:
    artifact, ctx, _ = trained
    quality = artifact.details["quality"]
    assert losses(ctx)[0] == pytest.approx(math.log(2), abs=0.3) and losses(ctx)[-1] < 0.2
    assert quality["rows"] == quality["pairs"] == 4 and quality["accuracy"] == 1.0
    assert artifact.metrics["eval_accuracy"] == 1.0 and quality["ece"] < 0.3
    assert sum(part["count"] for part in quality["bins"]) == 4
    assert artifact.details["data"]["computed_tokens"] < 0.75 * artifact.details["data"]["tokens"]
    assert artifact.details["layout"] == {"kind": "segments", "shared_prompts": True}


def test_saved_as_an_ordinary_model_with_its_head(trained: Any) -> None:
    artifact, ctx, lora = trained
    folder = ctx.dir / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    record = getattr(model.config, RECORD)
    assert model.config.num_labels == 1 and record["measured_on"] == "held-out" and record["answers"] == 8
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}], tokenize=False
        )
        for row in driver.PREFERENCES[12:]
        for side in ("chosen", "rejected")
    ]
    with torch.no_grad():
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        plain = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert float(plain.mean()) == pytest.approx(record["mean"], abs=1e-4)
    assert float(plain.std(correction=0)) == pytest.approx(record["deviation"], abs=1e-4)
    if lora is not None:
        assert artifact.details["merge_proof"]["base_diff"] > 0.1
        start = with_reward_head(driver.tiny_model(), ctx.seed)[0].score.weight
        assert float((model.score.weight - start).abs().max()) > 1e-3

    reward = RewardModel(RewardModelOptions(model=str(folder), normalise=True))
    ctx._load_other = lambda ref: hf.load_folder(Path(ref))
    reward.start(ctx)
    prompts = [row["prompt"] for row in driver.PREFERENCES[12:] for _ in range(2)]
    answers = [row[side] for row in driver.PREFERENCES[12:] for side in ("chosen", "rejected")]
    expected = ((plain - record["mean"]) / record["deviation"]).tolist()
    assert reward(prompts, answers) == pytest.approx(expected, abs=1e-4)
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    as_turns = [[{"role": "assistant", "content": answer}] for answer in answers]
    assert reward(messages, as_turns, finished=[True] * 8) == pytest.approx(expected, abs=1e-4)
    assert reward(messages, answers) == pytest.approx(expected, abs=1e-4)


def test_ratings_and_thumbs(tmp_path: Path) -> None:
    artifact, ctx = run(tmp_path / "rated", RATED[:24], held=RATED[24:], epochs=10.0, learning_rate=1e-2)
    quality, record = artifact.details["quality"], artifact.details[RECORD]
    assert artifact.details["objective"] == "regression"
    assert quality["rmse"] < 0.5 * quality["rmse_of_mean"] and quality["spearman"] > 0.6
    scores = torch.tensor([row["score"] for row in RATED[:24]])
    assert record["ratings"]["mean"] == pytest.approx(float(scores.mean()))
    assert record["ratings"]["deviation"] == pytest.approx(float(scores.std(correction=0)))
    artifact, ctx = run(tmp_path / "thumbs", THUMBS[:24], held=THUMBS[24:], epochs=6.0, learning_rate=1e-2)
    quality = artifact.details["quality"]
    assert artifact.details["objective"] == "logistic" and artifact.details["data"]["pairs"] == 0
    assert quality["accuracy"] == 1.0 and quality["accuracy_of_majority"] == 0.5
    texts = [{"text": row["completion"], "score": float(row["label"])} for row in THUMBS]
    artifact, ctx = run(tmp_path / "texts", texts, max_steps=2)
    assert artifact.details["objective"] == "logistic" and artifact.details["data"]["template"] == "plain text"
    assert artifact.details["quality"] == {} and "reward-not-measured" in ctx.events.codes()


def test_cancelled_and_resumed_on_the_same_curve(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", PAIRS, epochs=3.0)
    options = RewardOptions(batch_size=4, learning_rate=3e-3, epochs=3.0)
    cancel = CancelToken()
    ctx = context(tmp_path / "cut", PAIRS, options, cancel=cancel)
    emit = ctx._emit

    def stop(kind: str, **values: Any) -> None:
        emit(kind, **values)
        if kind == "metrics" and values["global_step"] == 5:
            cancel.cancel("test")

    ctx._emit = stop
    with pytest.raises(RunCancelled):
        RewardTrainer().run(ctx)
    rest = context(tmp_path / "cut", PAIRS, options)
    RewardTrainer().run(rest)
    assert losses(ctx) + losses(rest) == pytest.approx(losses(whole), abs=1e-7)


def test_the_input_model_s_tokenizer_is_left_alone(tmp_path: Path) -> None:
    tokenizer = driver.byte_tokenizer(pad="<|im_end|>")
    loaded = LoadedModel(model=driver.tiny_model(), tokenizer=tokenizer)
    options = RewardOptions(batch_size=4, learning_rate=1e-3, max_steps=1)
    ctx = context(tmp_path, driver.PREFERENCES, options, loaded=loaded)
    RewardTrainer().run(ctx)
    assert tokenizer.pad_token == "<|im_end|>" and "pad-token" in ctx.events.codes()
    assert ctx.kept[0].tokenizer.pad_token_id == ctx.kept[0].model.config.pad_token_id != tokenizer.eos_token_id


def test_a_head_of_one_output_is_kept_and_a_classifier_refused() -> None:
    tokenizer = driver.byte_tokenizer()
    model = reward_model(tokenizer)
    again, new = with_reward_head(model, 5)
    assert again is model and not new
    one, other = (with_reward_head(driver.tiny_model(), 7)[0].score.weight for _ in range(2))
    assert torch.equal(one, other)
    model.config.num_labels = 3
    with pytest.raises(StepError, match="classifier of 3 classes"):
        with_reward_head(model, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "regression", "center_rewards_coefficient": 0.1}, "center_rewards_coefficient has no effect"),
        ({"objective": "plackett-luce", "margin_weight": 2.0}, "margin_weight has no effect"),
        ({"beta": 0.1}, "Extra inputs"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    """T15, T16"""
    with pytest.raises(ValidationError, match=message):
        RewardOptions(**options)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (driver.PREFERENCES, {"objective": "regression"}, "cannot learn from rows of the shape preference"),
        (RATED, {"objective": "bradley-terry"}, "cannot learn from rows of the shape rated"),
        (RATED, {"center_rewards_coefficient": 0.1}, "has no effect with objective='regression'"),
        (RATED, {"objective": "logistic"}, "from scores of 0 and 1"),
    ],
)
def test_an_objective_that_does_not_fit_the_data_is_refused(
    rows: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """T16"""
    with pytest.raises(OptionsError, match=message):
        run(tmp_path, rows, **options)


def test_rows_that_say_nothing_are_errors_with_their_number(tmp_path: Path) -> None:
    """T3: answers that differ behind the limit only, and lists of one rank."""
    far = "x" * 300
    rows = [*driver.PREFERENCES[:2], {"prompt": "p", "chosen": far + "a", "rejected": far + "b"}]
    with pytest.raises(DataError, match="row 3: the answers are the same in the first 256 tokens") as caught:
        run(tmp_path / "a", rows)
    assert caught.value.code == "equal-answers"
    with pytest.raises(DataError, match="row 2: all answers have the same rank"):
        run(tmp_path / "b", [RANKED[0], {**RANKED[1], "ranks": [1, 1, 1, 1]}])
    with pytest.raises(DataError, match="nothing to learn is left after cutting"):
        run(tmp_path / "c", [*THUMBS[:2], {"prompt": far, "completion": "never", "label": True}])
    with pytest.raises(DataError, match="have the score 1, so there is nothing to tell apart"):
        run(
            tmp_path / "d",
            [{"prompt": "p", "completion": "a", "score": 1.0}, {"prompt": "q", "completion": "b", "score": 1.0}],
        )
    same = {"prompt": "Say it.", "completions": ["it", "it"], "ranks": [0, 1]}
    artifact, ctx = run(tmp_path / "same", [*RANKED, same], max_steps=1)
    assert artifact.details["data"]["repeated_rows"] == 1 and artifact.details["data"]["rows"] == 5
    assert "repeated-answers" in ctx.events.codes()
    artifact, ctx = run(tmp_path / "e", rows, on_bad_row="skip", max_steps=1)
    assert artifact.details["data"]["skipped_rows"] == 1 and "rows-skipped" in ctx.events.codes()


def test_calibration_of_known_chances() -> None:
    """Ten things at 0.82 of which nine happen, and ten at 0.27 of which four do: read as 0.73 of which six do."""
    made = calibration([0.82] * 10 + [0.27] * 10, [True] * 9 + [False] + [True] * 4 + [False] * 6)
    assert [(part["low"], part["count"]) for part in made["bins"]] == [(0.7, 10.0), (0.8, 10.0)]
    assert [part["expected"] for part in made["bins"]] == pytest.approx([0.73, 0.82])
    assert [part["seen"] for part in made["bins"]] == pytest.approx([0.6, 0.9])
    assert made["ece"] == pytest.approx((0.08 + 0.13) / 2)
    assert made["brier"] == pytest.approx((9 * 0.18**2 + 0.82**2 + 4 * 0.73**2 + 6 * 0.27**2) / 20)
    rows = [
        {"pairs": [(0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0)], "ranks": [0, 1, 2]},
        {"pairs": [(1, 0, 0.0)], "ranks": [1, 0]},
    ]
    quality = compared_quality([[3.0, 1.0, 2.0], [0.0, 1.0]], rows)
    # A list counts once, whatever its number of pairs.
    assert quality["accuracy"] == pytest.approx((2 / 3 + 1) / 2) and quality["best_first"] == 1.0
    assert quality["margin"] == pytest.approx((2 / 3 + 1) / 2)
    rated = rated_quality([1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 4.0, 4.0], "regression")
    assert rated["rmse"] == pytest.approx(math.sqrt(0.5)) and rated["mae"] == 0.5
    assert rated["spearman"] == pytest.approx(math.sqrt(0.9), abs=1e-6)


def test_reward_model_refuses_what_is_none(tmp_path: Path) -> None:
    tokenizer = driver.byte_tokenizer()
    model = reward_model(tokenizer)

    def start(model: Any, **options: Any) -> RewardModel:
        made = RewardModel(RewardModelOptions(model="some", **options))
        made._load(LoadedModel(model=model, tokenizer=tokenizer))
        return made

    with pytest.raises(StepError, match="is no reward model"):
        start(driver.tiny_model())
    with pytest.raises(OptionsError, match="normalise needs the mean"):
        start(model, normalise=True)
    with pytest.raises(OptionsError, match="label has no effect"):
        start(model, label="good")
    with pytest.raises(StepError, match="not loaded"):
        RewardModel(RewardModelOptions(model="some"))(["a"], ["b"])
    # Nothing at all has a score, that of an end.
    (value,) = start(model, template="plain")([""], [""])
    with torch.no_grad():
        assert value == pytest.approx(model(input_ids=torch.tensor([[tokenizer.eos_token_id]])).logits.item(), abs=1e-6)
    # Of a classifier: the log-odds of a class.
    config = copy.deepcopy(model.config)
    config.num_labels, config.id2label = 3, {0: "bad", 1: "so", 2: "good"}
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(OptionsError, match="label says which class is good") as caught:
        start(classifier)
    assert caught.value.fix == "label='good'"
    (value,) = start(classifier, label="good", template="plain")(["Say "], ["red"])
    ids = [*tokenizer("Say red")["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        p = classifier(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)[2]
    assert value == pytest.approx(float(torch.log(p / (1 - p))), abs=1e-5)


def test_an_encoder_learns_on_padded_rows(tmp_path: Path) -> None:
    """T12: what cannot share a sequence does not."""
    tokenizer = driver.byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=400, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, **sizes)
    loaded = LoadedModel(model=BertForMaskedLM(config).eval(), tokenizer=tokenizer)
    options = RewardOptions(batch_size=8, learning_rate=1e-2, epochs=12.0, warmup=0.2)
    ctx = context(tmp_path, driver.PREFERENCES, options, loaded=loaded)
    artifact = RewardTrainer().run(ctx)
    assert artifact.details["layout"] == {"kind": "padded", "shared_prompts": False}
    assert losses(ctx)[-1] < 0.3 and artifact.metrics["accuracy"] > 0.9
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert type(again).__name__ == "BertForSequenceClassification"


def test_preview_shows_every_answer_whole() -> None:
    def shown(rows: list[dict[str, Any]]) -> list[Any]:
        ctx = PreviewContext(
            step=None,  # type: ignore[arg-type]
            options=RewardOptions(max_length=64),
            seed=0,
            data=load_dataset(rows, accepts=ACCEPTS),
            _tokenizer=lambda: (driver.byte_tokenizer(), ModelFacts(positions=256, embeddings=261)),
        )
        return list(preview(ctx))

    made = shown(PAIRS[1:2])
    assert [row.target for row in made] == ["better than 1 answer by 0.25", "worst"]
    assert [row.tokens[0].role for row in made] == ["chosen", "rejected"] and made[0].targets == 0
    assert "".join(token.text for token in made[0].tokens).count(PAIRS[1]["chosen"]) == 1
    targets = [row.target for row in shown(RANKED[1:2])]
    assert targets == ["worst", "better than 2 answers", "better than 2 answers", "worst"]
    assert [row.target for row in shown(RATED[:2])] == [f"score {RATED[0]['score']:g}", "score 1"]
    (problem,) = shown([{"prompt": "p", "chosen": "x" * 90 + "a", "rejected": "x" * 90 + "b"}])
    assert problem.code == "equal-answers" and not problem.skipped and problem.fix.startswith("max_length=113, or ")
    (problem,) = shown([{"prompt": "p", "chosen": "x" * 300 + "a", "rejected": "x" * 300 + "b"}])
    assert problem.fix.startswith("max_length=256 (the model has 256 positions) if that is enough")


@pytest.mark.parametrize(
    ("path", "schema", "rows"),
    [
        ("llamafactory/dpo_en_demo.json", "preference", 150),
        ("llamafactory/dpo_zh_demo.json", "preference", 300),
        ("hh-rlhf/harmless-base/test.jsonl.gz", "preference", 1157),
        ("open-assistant/oaast_rm_zh.json", "ranked", 319),
        ("llamafactory/kto_en_demo.json", "feedback", 150),
        ("sst2/dev.tsv", "regression", 872),
    ],
)
def test_real_sets_by_path_alone(path: str, schema: str, rows: int, shared_data: Path) -> None:
    data = load_dataset(shared_data / path, accepts=ACCEPTS)
    assert data.schema == schema
    made = encode_answers(Encoder(driver.byte_tokenizer(), 100_000), [row for _, row in data.read()], schema)
    usable = [row for row in made if not isinstance(row, DataError)]
    assert len(usable) == rows and {row.code for row in made if isinstance(row, DataError)} <= {"repeated-answers"}


@pytest.mark.slow
def test_sentiment_of_real_sentences(stories260k: Path, shared_data: Path, tmp_path: Path) -> None:
    """A real model of 260,032 parameters tells good reviews of films from bad ones, by path alone."""
    loaded = hf.load_folder(stories260k)
    options = RewardOptions(batch_size=16, learning_rate=5e-4, epochs=2.0, warmup=0.1)
    ctx = context(tmp_path, driver.PREFERENCES, options, loaded=loaded)
    ctx.data = load_dataset(shared_data / "sst2" / "train.tsv", accepts=ACCEPTS, limit=1500)
    ctx.validation = load_dataset(shared_data / "sst2" / "dev.tsv", accepts=ACCEPTS, limit=400)
    artifact = RewardTrainer().run(ctx)
    quality = artifact.details["quality"]
    assert artifact.details["objective"] == "logistic" and quality["ece"] < 0.1
    assert quality["accuracy"] > 0.575 and quality["accuracy_of_majority"] == 0.5175
