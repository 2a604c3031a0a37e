"""Methods on pairs: the papers' formulas, accumulation, resuming, held-out pairs, conversations with tools."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from tunekit.cancel import CancelToken
from tunekit.data import load_dataset
from tunekit.errors import DataError, RunCancelled, StepError
from tunekit.plugins import LoadedModel, hf
from tunekit.testing.beside import beside
from tunekit_peft.options import LoraOptions
from tunekit_trl import dpo
from tunekit_trl.encoding import Encoder
from tunekit_trl.objectives import CpoObjective, DpoObjective, OrpoObjective
from tunekit_trl.options import DpoOptions, SftOptions
from tunekit_trl.pair_losses import PAIR_LOSSES, PairTerms
from tunekit_trl.pair_options import CpoOptions, OrpoOptions, SimpoOptions
from tunekit_trl.sft import SftTrainer

driver = beside(__file__, "trl_driver")

BETA, SMOOTH, TAU, ALPHA = 0.3, 0.1, 0.05, 0.5
METHODS = {
    "dpo": (dpo.DpoTrainer, DpoOptions, {"loss_type": ["sigmoid", "sft"]}),
    "cpo": (dpo.CpoTrainer, CpoOptions, {}),
    "simpo": (dpo.SimpoTrainer, SimpoOptions, {}),
    "orpo": (dpo.OrpoTrainer, OrpoOptions, {"nll_on": "completion"}),
}


def run(
    method: str,
    folder: Path,
    *,
    rows: Any = None,
    model: Any = None,
    tokenizer: Any = None,
    lora: LoraOptions | None = None,
    held_out: Any = None,
    cancel: CancelToken | None = None,
    on_loss: Any = None,
    **options: Any,
) -> tuple[Any, Any, Any]:
    """Artifact, events and context of a step on a tiny model."""
    loaded = LoadedModel(model=model or driver.tiny_model(), tokenizer=tokenizer or driver.byte_tokenizer())
    events = driver.Events()
    trainer, made, own = METHODS[method]

    def tell(kind: str, **values: Any) -> None:
        events(kind, **values)
        if kind == "metrics" and "loss" in values["values"] and on_loss:
            on_loss(values["global_step"])

    settings = {"batch_size": 4, "epochs": 2.0, "learning_rate": 2e-3, "samples": 0, **own, **options}
    if held_out is not None:
        settings["validation"] = 0.1
    ctx = driver.context(
        "align", folder, loaded, rows or driver.PREFERENCES, made(**settings), lora=lora, events=tell, cancel=cancel
    )
    if held_out is not None:
        ctx.validation = load_dataset(held_out, accepts=("preference",))
    return trainer().run(ctx), events, ctx


# Losses, in float64, from the papers.


@pytest.fixture(scope="module")
def exact() -> Any:
    """Rows; the policy; per pair and side the float64 log-probabilities of the tokens under policy and reference."""
    policy, start = driver.tiny_model(), driver.tiny_model()
    with torch.no_grad():
        for parameter, away in zip(policy.parameters(), driver.tiny_model(seed=1).parameters(), strict=True):
            parameter.lerp_(away, 0.3)
    encoder = Encoder(driver.byte_tokenizer(pad="<|im_end|>"), 256)
    pairs = [encoder.pair(row) for row in driver.PREFERENCES[:6]]
    rows = [{name: getattr(pair, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for pair in pairs]
    doubled = driver.tiny_model().double()
    doubled.load_state_dict(policy.double().state_dict())
    policy.float()
    known = []
    for row in rows:
        sides = []
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                reference = token_logps(start.double(), row, side)
            sides.append((token_logps(doubled, row, side), reference))
        row["ref_chosen_logps"], row["ref_rejected_logps"] = (float(reference.sum()) for _, reference in sides)
        known.append(sides)
    groups = [hf.PromptGroup(row["prompt_ids"], (row["chosen_ids"], row["rejected_ids"])) for row in rows]
    return rows, policy, doubled, known, hf.CompletionModel(policy, groups)


def token_logps(model: Any, row: Any, side: str, *, prompt: bool = False) -> torch.Tensor:
    """Log-probability of each completion token, with ``prompt`` of each token but the first, from the full logits."""
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps if prompt else logps[len(row["prompt_ids"]) - 1 :]


def sigma(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def dpo_formula(name: str, w: torch.Tensor, r: torch.Tensor, n: tuple[int, int], kind: str) -> torch.Tensor:
    """Loss of a pair from its log-ratios; ``n``: tokens."""
    if kind == "forward_kl":
        w, r = -torch.exp(-w), -torch.exp(-r)
    elif kind == "js_divergence":  # f'(u) = log(2u / (1 + u)), Wang et al. 2023, table 1
        w, r = (torch.log(2 * torch.exp(x) / (1 + torch.exp(x))) for x in (w, r))
    elif kind == "alpha_divergence":
        w, r = ((1 - torch.exp(x) ** -ALPHA) / ALPHA for x in (w, r))
    h = BETA * (w - r)
    p = sigma(h)
    made: dict[str, Any] = {
        "sigmoid": lambda: -torch.log(p),
        "sigmoid_norm": lambda: -torch.log(sigma(BETA * (w / n[0] - r / n[1]))),
        "hinge": lambda: torch.clamp(1 - h, min=0),
        "ipo": lambda: (w / n[0] - r / n[1] - 1 / (2 * BETA)) ** 2,
        "robust": lambda: (-(1 - SMOOTH) * torch.log(p) + SMOOTH * torch.log(1 - p)) / (1 - 2 * SMOOTH),
        "exo_pair": lambda: p * torch.log(p / (1 - SMOOTH)) + (1 - p) * torch.log((1 - p) / SMOOTH),
        "nca_pair": lambda: (
            -torch.log(sigma(BETA * w)) - 0.5 * torch.log(sigma(-BETA * w)) - 0.5 * torch.log(sigma(-BETA * r))
        ),
        "bco_pair": lambda: -torch.log(sigma(BETA * w)) - torch.log(sigma(-BETA * r)),
        "apo_zero": lambda: 1 - sigma(BETA * w) + sigma(BETA * r),
        "apo_down": lambda: sigma(BETA * w) + 1 - p,
        "sppo_hard": lambda: (w - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
        "discopop": lambda: -(1 - sigma(h / TAU)) * torch.log(p) + sigma(h / TAU) * torch.exp(-h),
    }
    loss: torch.Tensor = made[name]()
    return loss


def compare(exact: Any, objective: Any, expected: torch.Tensor, rounding: float = 1e-5) -> None:
    rows, policy, doubled, _, completions = exact
    policy.zero_grad()
    with completions.attending():
        made = completions(policy, [objective.group(row) for row in rows])
        found = objective.loss(made, rows, objective.totals(rows, None)).loss
    found.backward()
    gradients = torch.autograd.grad(expected, list(doubled.parameters()), retain_graph=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    norm = float(torch.stack([part.norm() for part in gradients]).norm())
    assert norm > 1e-3
    for one, other in zip(policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(one.grad.double(), other, rtol=1e-3, atol=rounding * max(1.0, norm))


CASES = [(name, "reverse_kl") for name in PAIR_LOSSES]
CASES += [("sigmoid", kind) for kind in ("forward_kl", "js_divergence", "alpha_divergence")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_dpo_losses_equal_the_papers_in_float64(name: str, kind: str, exact: Any) -> None:
    losses = [
        dpo_formula(name, *(policy.sum() - reference.sum() for policy, reference in sides), lengths(sides), kind)
        for sides in exact[3]
    ]
    settings = {"label_smoothing": SMOOTH, "discopop_tau": TAU, "f_divergence": kind, "f_alpha": ALPHA}
    rounding = 1e-4 if name == "discopop" else 1e-5
    compare(exact, DpoObjective({name: 1.0}, BETA, **settings), torch.stack(losses).mean(), rounding)


def lengths(sides: Any) -> tuple[int, int]:
    return len(sides[0][0]), len(sides[1][0])


def test_methods_without_reference_equal_the_papers_in_float64(exact: Any) -> None:
    """T15: CPO sums log-probabilities, SimPO and ORPO average them."""
    rows, _, doubled, known, _ = exact
    sums = [(sides[0][0].sum(), sides[1][0].sum()) for sides in known]
    means = [(sides[0][0].mean(), sides[1][0].mean()) for sides in known]
    nll = -torch.cat([sides[0][0] for sides in known]).mean()

    cpo = torch.stack([-torch.log(sigma(BETA * (w - r))) for w, r in sums]).mean() + nll
    compare(exact, CpoObjective("sigmoid", BETA, means=False, nll=1.0), cpo)
    simpo = torch.stack([-torch.log(sigma(2.0 * (w - r) - 0.5)) for w, r in means]).mean()
    compare(exact, CpoObjective("sigmoid", 2.0, means=True, gamma=0.5), simpo)

    def odds(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x) / (1 - torch.exp(x))

    ratio = torch.stack([-torch.log(sigma(torch.log(odds(w) / odds(r)))) for w, r in means]).mean()
    compare(exact, OrpoObjective(BETA, prompts=False), nll + BETA * ratio)
    whole = -torch.cat([token_logps(doubled, row, "chosen", prompt=True) for row in rows]).mean()
    compare(exact, OrpoObjective(BETA, prompts=True), whole + BETA * ratio)


@pytest.mark.parametrize(
    ("name", "divergence", "alpha"),
    [("sigmoid", "forward_kl", 0.5), ("sigmoid", "alpha_divergence", 0.5), ("discopop", "reverse_kl", 0.5)],
)
def test_losses_are_finite_however_far_the_policy_has_gone(name: str, divergence: str, alpha: float) -> None:
    """Log-ratios are sums over a completion: e to their power may be more than float32 holds."""
    chosen = torch.tensor([-95.0, 0.0, -950.0, -2000.0], requires_grad=True)
    rejected = torch.tensor([-95.0, -400.0, 0.0, -2000.0], requires_grad=True)
    tokens = torch.ones(4)
    terms = PairTerms(chosen, rejected, tokens, tokens, beta=1.0, f_divergence=divergence, f_alpha=alpha)
    losses = PAIR_LOSSES[name](terms)
    losses.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert torch.isfinite(losses).all() and torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()
    even = 0.5 * math.log(2) + 0.5 if name == "discopop" else math.log(2)
    assert losses.tolist()[::3] == pytest.approx([even, even]) and losses[2] > 100


def test_orpo_is_finite_for_a_sure_completion() -> None:
    from tunekit_trl.pair_losses import log_odds

    logps = torch.tensor([0.0, -1e-9, -30.0], requires_grad=True)
    made = log_odds(logps)
    made.sum().backward()
    assert torch.isfinite(made).all() and torch.isfinite(logps.grad).all()
    assert made[2].item() == pytest.approx(-30.0)


# The step.


@pytest.mark.parametrize("method", METHODS)
def test_eight_at_once_are_one_eight_times(method: str, tmp_path: Path) -> None:
    """T1: pairs of different lengths, and means over the tokens of the chosen answers."""
    weights = []
    for size, each in ((8, 1), (1, 8)):
        folder = tmp_path / str(size)
        run(method, folder, batch_size=size, gradient_accumulation=each, max_steps=2, max_grad_norm=0.0)
        weights.append(load_file(folder / "model" / "model.safetensors"))
    start = driver.tiny_model().state_dict()
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], rtol=0, atol=2e-6)
    assert max(float((one - start[name]).abs().max()) for name, one in weights[0].items()) > 1e-3


@pytest.mark.parametrize(("method", "lora"), [("dpo", LoraOptions(r=4)), ("orpo", None)])
def test_resumed_training_is_the_same_training(method: str, lora: LoraOptions | None, tmp_path: Path) -> None:
    _, whole, _ = run(method, tmp_path / "whole", lora=lora)
    cancel = CancelToken()
    with pytest.raises(RunCancelled):
        run(method, tmp_path / "cut", lora=lora, cancel=cancel, on_loss=lambda step: step == 3 and cancel.cancel("x"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("reference/*")}
    assert len(kept) == (method == "dpo")
    _, rest, _ = run(method, tmp_path / "cut", lora=lora)
    assert len(rest.losses) == 5 and rest.losses == whole.losses[3:]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4)], ids=["full", "lora"])
def test_held_out_pairs_are_judged_against_the_unchanged_reference(lora: LoraOptions | None, tmp_path: Path) -> None:
    """T13: after training, rewards are still those against the weights the step started from."""
    held_out = driver.PREFERENCES[::5]
    artifact, _, _ = run(
        "dpo", tmp_path, lora=lora, held_out=held_out, loss_type="sigmoid", learning_rate=1e-2, max_steps=6
    )
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "model").double()
    start = driver.tiny_model().double()
    encoder = Encoder(driver.byte_tokenizer(), 256)
    rewards: dict[str, list[float]] = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for row in held_out:
            pair = encoder.pair(row)
            ids = {name: getattr(pair, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
            for side, values in rewards.items():
                ratio = token_logps(policy, ids, side).sum() - token_logps(start, ids, side).sum()
                values.append(0.1 * float(ratio))
    margins = [w - r for w, r in zip(rewards["chosen"], rewards["rejected"], strict=True)]
    loss = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    metrics = artifact.metrics
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-4) and loss < 0.6
    assert metrics["eval_rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)
    assert metrics["eval_rewards/accuracies"] == sum(margin > 0 for margin in margins) / len(margins)


def test_the_base_as_reference_after_sft_through_an_adapter_is_caught(tmp_path: Path) -> None:
    """T13: what was computed for the base stands where that of the merged model is looked for."""
    run("dpo", tmp_path / "base", max_steps=1, loss_type="sigmoid")
    loaded = LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer())
    options = SftOptions(epochs=4.0, learning_rate=2e-2, batch_size=4)
    sft = driver.context("sft", tmp_path / "sft", loaded, driver.PAIRS, options, lora=LoraOptions(r=4))
    SftTrainer().run(sft)
    (tmp_path / "dpo").mkdir()
    (tmp_path / "base" / "reference").rename(tmp_path / "dpo" / "reference")
    with pytest.raises(StepError) as caught:
        run("dpo", tmp_path / "dpo", model=sft.kept[0].model, lora=LoraOptions(r=4), loss_type="sigmoid")
    assert caught.value.code == "reference-mismatch"


@pytest.mark.parametrize("method", ["cpo", "simpo", "orpo"])
def test_methods_without_reference_learn_the_preference(method: str, tmp_path: Path) -> None:
    artifact, events, _ = run(method, tmp_path, lora=LoraOptions(r=4), epochs=4.0, learning_rate=1e-2)
    metrics = artifact.metrics
    assert metrics["loss_last_quarter"] < metrics["loss_first_quarter"]
    # Sums of log-probabilities, as CPO has them, are lower for longer answers whatever is learned.
    assert metrics["rewards/accuracies"] > 0.9 or method == "cpo"
    assert "reference" not in artifact.details and not (tmp_path / "reference").exists()
    assert artifact.details["beta"] == METHODS[method][1]().beta
    assert artifact.details["shared_prompts"] is True
    first = events.named("metrics")[0]["values"]
    assert metrics["rewards/margins"] > first["rewards/margins"] + 0.01
    assert {"rewards/margins", "logps/chosen", "mean_token_accuracy", "nll_loss"} <= set(first)


def test_conversations_with_tools(tmp_path: Path) -> None:
    """A prompt of several turns, in which a tool was called, computed once; the answers are the last turn."""
    template = (
        "{% for t in tools or [] %}<|im_start|>system\n{{ t | tojson }}<|im_end|>\n{% endfor %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"type": "function", "function": {"name": "tide", "arguments": {"place": "shore"}}}
    tool = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}
    prompt = [
        {"role": "user", "content": "High?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "low"},
    ]
    rows = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": "No, low."}],
            "rejected": [{"role": "assistant", "content": "Yes!"}],
            "tools": json.dumps([tool]),
        },
        {
            "prompt": prompt[:1],
            "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
            "rejected": [{"role": "assistant", "content": "I cannot know."}],
            "tools": json.dumps([tool]),
        },
    ]
    tokenizer = driver.byte_tokenizer(template)
    artifact, events, _ = run(
        "dpo", tmp_path, rows=rows, tokenizer=tokenizer, max_steps=20, learning_rate=5e-3, loss_type="sigmoid"
    )
    assert events.losses[0] == pytest.approx(math.log(2), abs=1e-6) and events.losses[-1] < 0.3
    assert artifact.details["shared_prompts"] is True
    pair = Encoder(tokenizer, 1024).pair({**rows[1], "tools": [tool]})
    said = tokenizer.decode(pair.prompt_ids), tokenizer.decode(pair.chosen_ids)
    assert '"name": "tide"' in said[0] and said[0].endswith("<|im_start|>assistant\n")
    assert said[1].startswith('{"name": "tide"') and said[1].rstrip().endswith("<|im_end|>")


def test_options_that_have_no_effect_are_refused() -> None:
    """T15, T16."""
    for options, wrong in (
        (CpoOptions, {"loss_type": "hinge", "label_smoothing": 0.1}),
        (CpoOptions, {"loss_type": "simpo"}),
        (CpoOptions, {"gamma": 0.5}),
        (SimpoOptions, {"loss_type": "sigmoid"}),
        (SimpoOptions, {"gamma": -1.0}),
        (OrpoOptions, {"label_smoothing": 0.1}),
        (OrpoOptions, {"nll_on": "prompt"}),
        (OrpoOptions, {"keep_best": True}),
    ):
        with pytest.raises(ValidationError):
            options.model_validate(wrong)
    rates = {made: [made().resolve(adapter=adapter).learning_rate for adapter in (None, "lora")] for made in ALL}
    assert rates[CpoOptions] == rates[SimpoOptions] == [1e-6, 5e-6] and rates[OrpoOptions] == [8e-6, 5e-5]


ALL = (CpoOptions, SimpoOptions, OrpoOptions)


def test_offsets_of_margins(exact: Any, tmp_path: Path) -> None:
    """ODPO, Amini et al. 2024, eq. 8, and margins that are not used."""
    rows, known = exact[0], exact[3]
    margins = [0.5 * number for number in range(len(rows))]
    losses = [
        -torch.log(sigma(BETA * (w - r) - 2.0 * margin))
        for margin, sides in zip(margins, known, strict=True)
        for w, r in [[policy.sum() - reference.sum() for policy, reference in sides]]
    ]
    with_margins = [{**row, "margin": margin} for row, margin in zip(rows, margins, strict=True)]
    objective = DpoObjective({"sigmoid": 1.0}, BETA, offset=2.0)
    compare((with_margins, *exact[1:]), objective, torch.stack(losses).mean())

    pairs = [{**row, "margin": 0.5} for row in driver.PREFERENCES[:4]]
    settings: dict[str, Any] = {"loss_type": "sigmoid", "max_steps": 1}
    _, events, _ = run("dpo", tmp_path / "offset", rows=pairs, offset=2.0, **settings)
    assert events.losses[0] == pytest.approx(math.log1p(math.exp(1.0)), abs=1e-6) and events.codes() == []
    _, events, _ = run("dpo", tmp_path / "unused", rows=pairs, **settings)
    assert events.losses[0] == pytest.approx(math.log(2), abs=1e-6) and events.codes() == ["margins-unused"]
    with pytest.raises(DataError) as caught:
        run("dpo", tmp_path / "none", offset=2.0, **settings)
    assert caught.value.code == "no-margin"
    with pytest.raises(ValidationError, match="belongs to sigmoid"):
        DpoOptions(loss_type="hinge", offset=1.0)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4)], ids=["full", "lora"])
def test_samples_before_and_after(lora: LoraOptions | None, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lora": lora, "samples": 3, "sample_tokens": 8, "loss_type": "sigmoid", "max_steps": 3}
    artifact, _, _ = run("dpo", tmp_path / "moved", learning_rate=1e-2, **options)
    details = artifact.details
    assert [set(row) >= {"prompt", "before", "after"} for row in details["samples"]["rows"]] == [True] * 3
    assert details["kl_to_start"]["per_token"] > 1e-4 and "win_rate" not in details
    still, _, _ = run("dpo", tmp_path / "still", learning_rate=1e-12, **options)
    assert all(row["before"] == row["after"] for row in still.details["samples"]["rows"])
    assert still.details["kl_to_start"]["per_token"] == pytest.approx(0, abs=1e-6)


def test_rows_are_kept_in_four_bytes_a_token() -> None:
    from tunekit_trl.completion_rows import CompletionRows

    rows = CompletionRows(("chosen", "rejected"))
    rows.add([1, 2], [3], [4, 5, 6])
    rows.add([], [70000], [8])
    rows.set_reference([-1.0, -2.0, -3.0, -4.0])
    assert len(rows) == 2 and rows._tokens.itemsize * len(rows._tokens) == 4 * 8
    assert dict(rows[1]) == {
        "prompt_ids": [],
        "chosen_ids": [70000],
        "rejected_ids": [8],
        "ref_chosen_logps": -3.0,
        "ref_rejected_logps": -4.0,
    }
    groups = rows.groups()
    assert len(groups) == 2 and list(groups) == [([1, 2], [[3], [4, 5, 6]]), *groups[1:]]
    assert groups[1:] == [([], [[70000], [8]])]
    assert len(list(rows)) == 2
    with pytest.raises(IndexError):
        rows[2]
    with pytest.raises(ValueError, match="1 values"):
        rows.set_column("margin", [0.5])


def test_an_adapter_on_the_output_layer_is_trained(tmp_path: Path) -> None:
    """T4: logits of the completions alone still go through it."""
    lora = LoraOptions(r=4, targets=["lm_head"])
    model = driver.tiny_model(tied=False)
    artifact, events, _ = run(
        "dpo", tmp_path, model=model, lora=lora, loss_type="sigmoid", max_steps=4, learning_rate=1e-2
    )
    assert events.losses[0] == pytest.approx(math.log(2), abs=1e-6) and events.losses[-1] < events.losses[0] - 1e-3
    assert artifact.details["merge_proof"]["changed_tensors"] == 1


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4)], ids=["full", "lora"])
def test_the_reference_is_computed_in_the_precision_of_the_training(
    lora: LoraOptions | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T13: in mixed precision, and before the training begins, it is what the policy computes at the first step."""
    from tunekit.plugins.hf import arguments

    monkeypatch.setattr(
        arguments,
        "device_defaults",
        lambda: {"use_cpu": True, "bf16": True, "fp16": False, "dataloader_pin_memory": False},
    )
    seen: dict[str, Any] = {}

    class Alone(dpo.DpoTrainer):
        def ready(self, ctx: Any, trainer: Any) -> None:
            """Each pair by itself, as in a batch of one: the same products, which round in the same way."""
            rows = trainer.train_dataset.rows
            seen["together"] = [row[name] for row in rows for name in ("ref_chosen_logps", "ref_rejected_logps")]
            seen["alone"] = torch.cat([trainer.sums(trainer.model, [group]) for group in rows.groups()]).tolist()
            exact = driver.tiny_model().to(torch.bfloat16).double()
            with torch.no_grad():
                sides = [token_logps(exact, row, side).sum() for row in rows for side in ("chosen", "rejected")]
            seen["rounding"] = float((torch.stack(sides) - torch.tensor(seen["alone"])).abs().max())
            rows.set_reference(seen["alone"])
            super().ready(ctx, trainer)

    monkeypatch.setitem(METHODS, "dpo", (Alone, DpoOptions, {}))
    _, events, _ = run(
        "dpo", tmp_path, model=driver.tiny_model().to(torch.bfloat16), lora=lora, batch_size=1, max_steps=1
    )
    first = events.named("metrics")[0]["values"]
    assert abs(first["rewards/chosen"]) < 1e-6 and abs(first["rewards/rejected"]) < 1e-6
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert seen["together"] == pytest.approx(seen["alone"], rel=5e-3)
    assert seen["rounding"] > 1e-4


def test_the_cached_reference_belongs_to_the_config(tmp_path: Path) -> None:
    """The same weights with other rotary positions are another model."""
    run("dpo", tmp_path, max_steps=1)
    other = driver.tiny_model()
    run("dpo", tmp_path, model=other, max_steps=1)
    assert len(list((tmp_path / "reference").iterdir())) == 1
    model = driver.tiny_model()
    config = copy.deepcopy(model.config)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 50.0}
    changed = type(model)(config)
    changed.load_state_dict(model.state_dict())
    run("dpo", tmp_path / "other", model=changed, max_steps=1)
    made = [next((folder / "reference").iterdir()) for folder in (tmp_path, tmp_path / "other")]
    assert made[0].name != made[1].name and made[0].read_text() != made[1].read_text()


def test_the_balance_of_experts_is_part_of_the_loss(tmp_path: Path) -> None:
    """As in supervised training: its mean over the completion tokens of the optimizer step, whatever its batches."""

    def trained(factor: float, name: str, **options: Any) -> tuple[list[Any], Any]:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 288}
        config = MixtralConfig(
            **sizes,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            output_router_logits=True,
            router_aux_loss_coef=factor,
        )
        model = MixtralForCausalLM(config).eval()
        seen: list[Any] = []

        class Watched(hf.CompletionModel):
            def __call__(self, model: Any, groups: Any, **more: Any) -> Any:
                made = super().__call__(model, groups, **more)
                seen.append((sum(len(c) for group in groups for c in group.completions), made.routing))
                return made

        options = {"batch_size": 4, "max_steps": 1, "learning_rate": 1e-3, "samples": 0, **options}
        ctx = driver.context(
            "align",
            tmp_path / name,
            LoadedModel(model=model, tokenizer=driver.byte_tokenizer()),
            driver.PREFERENCES,
            CpoOptions(**options),
        )
        rows, _ = dpo.CpoTrainer().rows(ctx, Encoder(driver.byte_tokenizer(), 256), ctx.data)
        objective = CpoObjective("sigmoid", 0.1, means=False)
        trainer = hf.CompletionTrainer(ctx, model, None, rows, objective, puts=Watched)
        hf.train(ctx, trainer)
        return seen, trainer.state.log_history[0]["loss"]

    _, plain = trained(0.0, "plain", batch_size=2, gradient_accumulation=2)
    seen, loss = trained(0.5, "balanced", batch_size=2, gradient_accumulation=2)
    tokens = sum(count for count, _ in seen)
    added = sum(count * float(routing.detach()) for count, routing in seen) / tokens
    assert len(seen) == 2 and seen[0][0] != seen[1][0] and added > 0.1
    assert loss - plain == pytest.approx(added, abs=1e-5)
