"""Losses and gradients on pairs equal those of TRL's trainers on the same batch; tried with both ends of its range."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tunekit.plugins import hf
from tunekit.plugins.hf import completions
from tunekit.plugins.hf.isolation import Layout
from tunekit.testing.beside import beside
from tunekit_trl.encoding import Encoder
from tunekit_trl.objectives import CpoObjective, DpoObjective, OrpoObjective
from tunekit_trl.pair_losses import PAIR_LOSSES

driver = beside(__file__, "trl_driver")

ARGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 6,
    "disable_tqdm": True,
}
BETA = 0.3


@pytest.fixture(scope="module", params=["shared", "unshared", "padded"])
def batch(request: pytest.FixtureRequest) -> Any:
    """Rows of pairs of different lengths, a policy away from the reference, and our log-probabilities of the pairs."""
    policy, start = driver.tiny_model(), driver.tiny_model()
    with torch.no_grad():
        for parameter, away in zip(policy.parameters(), driver.tiny_model(seed=1).parameters(), strict=True):
            parameter.lerp_(away, 0.3)
    # Padding is the token that ends an answer.
    tokenizer = driver.byte_tokenizer(pad="<|im_end|>")
    encoder = Encoder(tokenizer, 256)
    pairs = [encoder.pair(row) for row in driver.PREFERENCES[:5]]
    turns = ["Hi", "Hello", "Say red."]
    talk = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    pairs.append(encoder.pair({"prompt": talk, "chosen": "red", "rejected": "no, never at all"}))
    rows = [{name: getattr(pair, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for pair in pairs]
    assert len({len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows}) > 3
    groups = [hf.PromptGroup(row["prompt_ids"], (row["chosen_ids"], row["rejected_ids"])) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "padded":
            patch.setattr(completions, "proven_layout", lambda model, rows: Layout("padded", "for the test"))
        frozen, moving = hf.CompletionModel(start, groups), hf.CompletionModel(policy, groups)
    frozen.shares = moving.shares = request.param == "shared"
    with frozen.attending(), torch.no_grad():
        known = frozen(start, groups).sums().tolist()
    rows = [
        {**row, "ref_chosen_logps": known[2 * at], "ref_rejected_logps": known[2 * at + 1]}
        for at, row in enumerate(rows)
    ]
    return rows, policy, start, tokenizer, moving


def ours(batch: Any, objective: Any) -> tuple[float, dict[str, float], list[torch.Tensor]]:
    """Loss, what is logged, and the gradient of each parameter."""
    rows, policy, _, _, moving = batch
    policy.zero_grad()
    with moving.attending():
        made = moving(policy, [objective.group(row) for row in rows])
        found = objective.loss(made, rows, objective.totals(rows, None))
    found.loss.backward()
    measured = {name: float(total) / count for name, (total, count) in found.measured.items()}
    return found.loss.item(), measured, [parameter.grad.clone() for parameter in policy.parameters()]


def compare(
    batch: Any, objective: Any, theirs: torch.Tensor, model: Any, logged: dict[str, float], rounding: float = 1e-5
) -> None:
    loss, measured, gradients = ours(batch, objective)
    theirs.backward()
    expected = [parameter.grad for parameter in model.parameters()]
    assert loss == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    norms = [float(torch.stack([part.norm() for part in parts]).norm()) for parts in (gradients, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=rounding, abs=rounding) and norms[1] > 1e-3
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=rounding * max(1.0, norms[1]))
    for name in set(measured) & set(logged):
        assert measured[name] == pytest.approx(logged[name], rel=1e-4, abs=1e-5), name
    assert len(set(measured) & set(logged)) >= 4


@pytest.fixture(scope="module")
def dpo_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return DPOTrainer(
        driver.tiny_model(),
        ref_model=driver.tiny_model(),
        args=DPOConfig(output_dir=str(tmp_path_factory.mktemp("dpo")), **ARGS),
        train_dataset=Dataset.from_list(driver.PREFERENCES[:2]),
        processing_class=driver.byte_tokenizer(),
    )


DPO = [(name, {}) for name in PAIR_LOSSES if name not in ("robust", "exo_pair")]
DPO += [("robust", {"label_smoothing": 0.1}), ("exo_pair", {"label_smoothing": 1e-3})]
DPO += [("sigmoid+bco_pair+sft", {}), ("discopop", {"discopop_tau": 1.0})]
DPO += [("sigmoid", {"f_divergence": kind}) for kind in ("forward_kl", "js_divergence", "alpha_divergence")]


@pytest.mark.parametrize(("losses", "settings"), DPO, ids=lambda value: str(value))
def test_dpo_family_equals_trl(losses: str, settings: dict[str, Any], batch: Any, dpo_trainer: Any) -> None:
    weights = dict(zip(losses.split("+"), (0.8, 0.2, 1.5) if "+" in losses else (1.0,), strict=False))
    rows, policy, _, tokenizer, _ = batch
    trainer, model = dpo_trainer, dpo_trainer.model
    model.load_state_dict(policy.state_dict())
    model.zero_grad()
    trainer.loss_types, trainer.loss_weights, trainer.beta = list(weights), list(weights.values()), BETA
    trainer.label_smoothing = settings.get("label_smoothing", 0.0)
    trainer.f_divergence_type = settings.get("f_divergence", "reverse_kl")
    trainer.f_alpha_divergence_coef = 1 - 0.5
    trainer.args.discopop_tau = settings.get("discopop_tau", 0.05)
    trainer._metrics["train"].clear()
    model.train()
    plain = [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in rows]
    collate = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    loss = trainer.compute_loss(model, collate(plain))
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    # The rounding of summed log-probabilities, 1e-5 of them, goes into discopop's mixture divided by its tau.
    rounding = 1e-4 if losses == "discopop" and not settings else 1e-5
    compare(batch, DpoObjective(weights, BETA, **settings), loss, model, logged, rounding)


def sides(rows: Any) -> dict[str, torch.Tensor]:
    """A batch as the trainers of CPO and ORPO take it, padded with 2, the end of an answer."""
    made: dict[str, torch.Tensor] = {}
    for side in ("chosen", "rejected"):
        texts = [[*row["prompt_ids"], *row[f"{side}_ids"]] for row in rows]
        size = max(map(len, texts))
        pad = [size - len(text) for text in texts]
        labels = [[*[-100] * len(row["prompt_ids"]), *row[f"{side}_ids"]] for row in rows]
        made[f"{side}_input_ids"] = torch.tensor([[*ids, *[2] * more] for ids, more in zip(texts, pad, strict=True)])
        made[f"{side}_labels"] = torch.tensor([[*ids, *[-100] * more] for ids, more in zip(labels, pad, strict=True)])
        made[f"{side}_attention_mask"] = torch.tensor([[1] * (size - more) + [0] * more for more in pad])
    return made


CPO = [
    ("sigmoid", {}, {"nll": 1.0}),
    ("sigmoid", {}, {"nll": 0.0, "label_smoothing": 0.1}),
    ("hinge", {}, {"nll": 0.5}),
    ("ipo", {}, {"nll": 1.0, "means": True}),
    ("simpo", {"simpo_gamma": 0.5}, {"gamma": 0.5, "means": True}),
    ("simpo", {"simpo_gamma": 0.4, "alpha": 0.25}, {"gamma": 0.4, "alpha": 0.25, "means": True}),
]


@pytest.mark.parametrize(("kind", "settings", "own"), CPO, ids=lambda value: str(value))
def test_cpo_and_simpo_equal_trl(
    kind: str, settings: dict[str, float], own: dict[str, Any], batch: Any, tmp_path: Path
) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    rows, policy, _, _, _ = batch
    model = copy.deepcopy(policy)
    model.zero_grad()
    trainer = cpo.CPOTrainer(
        model,
        args=cpo.CPOConfig(
            output_dir=str(tmp_path),
            loss_type=kind,
            beta=BETA,
            cpo_alpha=own.get("nll", 0.0),
            label_smoothing=own.get("label_smoothing", 0.0),
            **settings,
            **ARGS,
        ),
        train_dataset=Dataset.from_list(driver.PREFERENCES[:1]),
        processing_class=driver.byte_tokenizer(pad="<|im_end|>"),
    )
    loss, logged = trainer.get_batch_loss_metrics(model, sides(rows))
    left_out = ("logps", "nll") if own.get("means") or not own.get("nll") else ()
    logged = {name: value for name, value in logged.items() if not name.startswith(left_out)}
    compare(
        batch,
        CpoObjective("sigmoid" if kind == "simpo" else kind, BETA, **{"means": False, **own}),
        loss,
        model,
        logged,
    )


def test_orpo_equals_trl(batch: Any, tmp_path: Path) -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    rows, policy, _, _, _ = batch
    model = copy.deepcopy(policy)
    model.zero_grad()
    trainer = orpo.ORPOTrainer(
        model,
        args=orpo.ORPOConfig(output_dir=str(tmp_path), beta=BETA, **ARGS),
        train_dataset=Dataset.from_list(driver.PREFERENCES[:1]),
        processing_class=driver.byte_tokenizer(pad="<|im_end|>"),
    )
    loss, logged = trainer.get_batch_loss_metrics(model, sides(rows))
    logged = {name: value for name, value in logged.items() if not name.startswith("logps")}
    compare(batch, OrpoObjective(BETA, prompts=True), loss, model, logged)
