"""Supervised fine-tuning: the losses of TRL, the laws of batches, and nothing left on the model."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunekit.cancel import CancelToken
from tunekit.errors import DataError, StepError
from tunekit.plugins import LoadedModel
from tunekit.testing.beside import beside
from tunekit_peft.options import LoraOptions
from tunekit_trl.options import SftOptions
from tunekit_trl.plugin import tunekit_trainers
from tunekit_trl.sft import SftTrainer

driver = beside(__file__, "trl_driver")

LORA = LoraOptions(r=4)


def run(
    folder: Path,
    rows: Any = None,
    *,
    lora: LoraOptions | None = None,
    model: Any = None,
    tokenizer: Any = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> tuple[Any, Any, Any]:
    """Artifact, events and context of one sft step on a tiny model."""
    loaded = LoadedModel(model=model or driver.tiny_model(), tokenizer=tokenizer or driver.byte_tokenizer())
    events = driver.Events()
    settings = {"batch_size": 4, "epochs": 2.0, "learning_rate": 2e-3, **options}
    ctx = driver.context(
        "sft",
        folder,
        loaded,
        driver.PAIRS if rows is None else rows,
        SftOptions(**settings),
        lora=lora,
        events=events,
        cancel=cancel,
    )
    return SftTrainer().run(ctx), events, ctx


def test_full_training_learns_and_says_what_it_did(tmp_path: Path) -> None:
    base = driver.tiny_model()
    before = copy.deepcopy(base.state_dict())
    artifact, events, ctx = run(tmp_path, model=base, epochs=12.0, learning_rate=1e-2)
    assert events.losses[-1] < 0.6 * events.losses[0]
    assert artifact.kind == "model" and artifact.model.path == "model" and artifact.adapter_path is None
    assert artifact.trained == "full"
    assert artifact.trained_parameters == artifact.details["parameters"] == sum(p.numel() for p in base.parameters())
    metrics = artifact.metrics
    assert metrics["loss_first"] == events.losses[0] and metrics["loss"] == events.losses[-1]
    assert metrics["loss_first_quarter"] == pytest.approx(np.mean(events.losses[: len(events.losses) // 4]))
    assert metrics["loss_last_quarter"] == pytest.approx(np.mean(events.losses[-(len(events.losses) // 4) :]))
    assert metrics["tokens_per_second"] > 0
    data = artifact.details["data"]
    answers = sum(len(row["completion"]) + 2 for row in driver.PAIRS)  # <|im_end|> and the line break
    assert data["rows"] == 16 and data["trained_tokens"] == answers
    assert metrics["tokens"] == 12 * answers
    assert data["template"] == "chat template" and data["train_on"] == "completion" and data["cut_rows"] == 0
    assert events.codes() == []

    (kept,) = ctx.kept
    assert kept.model is base
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert any(not torch.equal(before[name], value) for name, value in base.state_dict().items())
    for name, value in reloaded.state_dict().items():
        assert torch.equal(value, base.state_dict()[name])


def test_adapter_is_kept_merged_and_proven(tmp_path: Path) -> None:
    base = driver.tiny_model()
    artifact, events, ctx = run(tmp_path, model=base, lora=LORA, epochs=12.0, learning_rate=2e-2)
    assert events.losses[-1] < 0.95 * events.losses[0]
    assert artifact.trained == "lora r=4" and artifact.adapter_path == "adapter"
    assert artifact.trained_parameters < artifact.model.parameters / 2
    proof = artifact.details["merge_proof"]
    assert proof["max_abs_diff"] <= 1e-5 < proof["base_diff"]
    assert sorted(path.name for path in (tmp_path / "adapter").glob("*.safetensors")) == ["adapter_model.safetensors"]
    assert not (tmp_path / "adapter" / "ref").exists()
    (kept,) = ctx.kept
    assert not any("lora" in name for name, _ in kept.model.named_modules())


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4, dropout=0.1)], ids=["full", "lora"])
def test_nothing_but_the_weights_changes(lora: LoraOptions | None, tmp_path: Path) -> None:
    model = driver.tiny_model(dropout=0.1)
    tokenizer = driver.byte_tokenizer()
    tokenizer.pad_token = None
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    config, attributes = copy.deepcopy(model.config.to_dict()), set(vars(model))
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    environment = dict(os.environ)
    _, _, ctx = run(tmp_path, model=model, tokenizer=tokenizer, lora=lora, gradient_checkpointing=True)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])
    assert dict(os.environ) == environment
    (kept,) = ctx.kept
    assert "forward" not in vars(kept.model)
    assert set(vars(kept.model)) == attributes
    now = kept.model.config.to_dict()
    for key in ("dtype", "transformers_version", "use_cache", "architectures", "_name_or_path"):
        now.pop(key, None)
        config.pop(key, None)
    assert now == config
    assert tokenizer.pad_token is None
    assert not kept.model.training and not kept.model.is_activation_checkpointing
    assert all(parameter.requires_grad for parameter in kept.model.parameters())
    copy.deepcopy(kept.model)(input_ids=torch.tensor([[1, 2, 3]]))
    # The next step trains on.
    SftTrainer().run(
        driver.context("sft", tmp_path / "next", kept, driver.PAIRS, SftOptions(max_steps=1, batch_size=4), lora=lora)
    )


def test_conversations_and_text(tmp_path: Path) -> None:
    talk = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "bb"},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "dd"},
            ]
        }
    ] * 4
    artifact, _, _ = run(tmp_path / "talk", talk, max_steps=1)
    assert artifact.details["data"]["train_on"] == "all-assistant"
    assert artifact.details["data"]["trained_tokens"] == 4 * 8
    artifact, _, _ = run(tmp_path / "last", talk, max_steps=1, train_on="last")
    assert artifact.details["data"]["trained_tokens"] == 4 * 4
    artifact, _, _ = run(tmp_path / "text", [{"text": "abcd"}] * 4, max_steps=1)
    assert artifact.details["data"]["template"] == "plain text"
    assert artifact.details["data"]["trained_tokens"] == 4 * 4  # three letters after the first, and the end
    with pytest.raises(DataError) as caught:
        run(tmp_path / "wrong", [{"text": "abcd"}] * 4, max_steps=1, train_on="last")
    assert caught.value.code == "train-on"


def test_rows_that_teach_nothing_are_errors_or_counted(tmp_path: Path) -> None:
    rows = [*driver.PAIRS[:4], {"prompt": "x" * 300, "completion": "never seen"}]
    with pytest.raises(DataError) as caught:
        run(tmp_path / "a", rows, max_steps=1, max_length=128)
    assert caught.value.code == "no-targets" and caught.value.details["row"] == 5
    assert "row 5" in caught.value.message and "max_length" in caught.value.fix
    artifact, events, _ = run(tmp_path / "b", rows, max_steps=1, max_length=128, on_bad_row="skip")
    assert artifact.details["data"]["rows"] == 4 and artifact.details["data"]["skipped_rows"] == 1
    assert events.codes() == ["rows-skipped"]
    with pytest.raises(DataError) as caught:
        run(tmp_path / "c", [rows[-1]], max_steps=1, max_length=128, on_bad_row="skip")
    assert caught.value.code == "empty-dataset"
    with pytest.raises(DataError):
        run(tmp_path / "d", [], max_steps=1)


def test_cut_rows_are_told_and_the_model_bounds_the_length(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "y" * length} for length in (80, 80, 80, 4)]
    artifact, events, _ = run(tmp_path, rows, max_steps=1, model=driver.tiny_model(positions=64))
    data = artifact.details["data"]
    assert data["max_length"] == 64 and data["cut_rows"] == 3 and data["longest_row"] == 64
    (notice,) = events.named("notice")
    assert notice["code"] == "rows-cut" and "the model's 64 positions" in notice["message"]


def test_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        run(tmp_path, learning_rate=1e30, max_grad_norm=0.0)
    assert caught.value.code == "nan-loss"
    assert not (tmp_path / "model").exists()


def test_adapter_on_the_output_layer_is_trained(tmp_path: Path) -> None:
    """T4: logits at the targets only go through the output layer with the adapter on it."""
    model = driver.tiny_model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    artifact, events, _ = run(
        tmp_path, model=model, lora=LoraOptions(r=4, targets=["lm_head"]), epochs=6.0, learning_rate=5e-2
    )
    assert events.losses[-1] < 0.9 * events.losses[0]
    assert artifact.details["merge_proof"]["changed_tensors"] == 1


def test_real_model_without_chat_template(stories260k: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    rows = [{"prompt": f"{name} had a", "completion": " red ball."} for name in ("Tim", "Lily", "Tom", "Sue")]
    artifact, events, _ = run(
        tmp_path, rows, model=model, tokenizer=tokenizer, lora=LORA, epochs=10.0, learning_rate=5e-3
    )
    assert events.losses[-1] < 0.5 * events.losses[0]
    assert artifact.details["data"]["template"] == "plain text"
    assert artifact.details["merge_proof"]["max_abs_diff"] < 1e-4


def test_options() -> None:
    assert SftOptions().resolve(adapter=None).learning_rate == 2e-5
    assert SftOptions().resolve(adapter="lora").learning_rate == 2e-4
    assert SftOptions(learning_rate=1e-3).resolve(adapter="lora").learning_rate == 1e-3
    for wrong in ({"train_on": "prompt"}, {"lr": 1e-3}, {"epochs": 0.0}):
        with pytest.raises(ValidationError):
            SftOptions.model_validate(wrong)
    assert [spec.name for spec in tunekit_trainers() if spec.stage == "sft"] == ["sft"]


def test_no_network_no_output_no_telemetry(tmp_path: Path) -> None:
    """With nothing that would keep a library off the network: no HF_HUB_OFFLINE, no CI variable."""
    code = f"""
        import socket, sys
        def refuse(*a, **k):
            raise AssertionError("network")
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
        import importlib.util
        import huggingface_hub.utils._telemetry as telemetry
        spec = importlib.util.spec_from_file_location("trl_driver", {str(Path(driver.__file__))!r})
        driver = importlib.util.module_from_spec(spec); spec.loader.exec_module(driver)
        from tunekit.plugins import LoadedModel
        from tunekit_peft.options import LoraOptions
        from tunekit_trl.options import DpoOptions, SftOptions
        from tunekit_trl.sft import SftTrainer
        from tunekit_trl.dpo import DpoTrainer
        print("ready", flush=True); print("ready", file=sys.stderr, flush=True)
        for lora in (None, LoraOptions()):
            model = driver.tiny_model(); model.name_or_path = model.config._name_or_path = "acme/some-model"
            loaded = LoadedModel(model=model, tokenizer=driver.byte_tokenizer())
            SftTrainer().run(driver.context("sft", driver.Path({str(tmp_path)!r}) / f"sft{{bool(lora)}}", loaded,
                driver.PAIRS, SftOptions(max_steps=2, batch_size=4), lora=lora))
            loaded = LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer())
            DpoTrainer().run(driver.context("align", driver.Path({str(tmp_path)!r}) / f"dpo{{bool(lora)}}", loaded,
                driver.PREFERENCES, DpoOptions(max_steps=2, batch_size=4), lora=lora))
        assert telemetry._TELEMETRY_QUEUE.empty() and telemetry._TELEMETRY_THREAD is None
        assert "wandb" not in sys.modules and "gptqmodel" not in sys.modules
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HF_") and key not in ("CI", "TQDM_DISABLE")
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready\n"
    assert done.stderr.rpartition("ready\n")[2] == ""
    assert not list(tmp_path.rglob("README.md"))
    assert json.loads((tmp_path / "sftTrue" / "adapter" / "adapter_config.json").read_text())["r"] == 8
