"""Two processes learn what one learns: the loss is a mean over the targets of all of them."""

from __future__ import annotations

import json
import os
import socket
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tunekit.testing import warm

CODE = """
    import importlib.util, json, sys
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("trl_driver", sys.argv[1])
    driver = importlib.util.module_from_spec(spec); spec.loader.exec_module(driver)
    import torch
    from tunekit.data import load_dataset
    from tunekit.plugins import LoadedModel, hf
    from tunekit_trl.encoding import Encoder
    from tunekit_trl.options import SftOptions
    from tunekit_trl.rows import sft_rows
    folder, size, accumulation = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    model, tokenizer = driver.tiny_model(), driver.byte_tokenizer()
    options = SftOptions(batch_size=size, gradient_accumulation=accumulation, epochs=2.0, learning_rate=0.05,
        optimizer="sgd", max_grad_norm=0.0, validation=1, checkpoint_every=100)
    events = driver.Events()
    ctx = driver.context("sft", folder, LoadedModel(model=model, tokenizer=tokenizer), driver.PAIRS[:13], options,
        events=events)
    encoder = Encoder(tokenizer, 1024)
    rows, _ = sft_rows(ctx, encoder, None)
    trainer = hf.TokenTrainer(ctx, model, tokenizer, rows, rows)
    hf.train(ctx, trainer)
    if trainer.is_world_process_zero():
        log = [r for r in trainer.state.log_history if "loss" in r or "eval_loss" in r]
        keys = ("loss", "eval_loss", "tokens", "input_tokens", "mean_token_accuracy", "eval_tokens", "grad_norm")
        weights = [float(p.detach().double().sum()) for p in model.parameters()]
        Path(sys.argv[5]).write_text(json.dumps([[{k: r[k] for k in keys if k in r} for r in log], weights]))
"""


def run(folder: Path, world: int, size: int, accumulation: int) -> Any:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = str(Path(__file__).with_name("trl_driver.py"))
    started = []
    for rank in range(world):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        arguments = [driver, str(folder / "step"), str(size), str(accumulation), str(folder / "out.json")]
        started.append(warm.start(["-c", textwrap.dedent(CODE), *arguments], env=environment))
    for process in started:
        done = process.communicate(timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """T1: thirteen rows in batches of two are seven batches: one process has nothing left in the last step, and the
    processes have different numbers of targets in every one."""
    one, weights = run(tmp_path / "one", 1, 2, 2)
    two, other = run(tmp_path / "two", 2, 2, 1)
    assert len(one) == len(two) == 10
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if key != "input_tokens":  # the row that is run once more to keep step is counted
                assert mine[key] == pytest.approx(value, rel=1e-4), key
    assert other == pytest.approx(weights, rel=1e-4, abs=1e-4)
