"""Two processes write their own completions and learn the same weights."""

from __future__ import annotations

import json
import os
import socket
import textwrap
from pathlib import Path

import pytest

from tunekit.testing import warm

CODE = """
    import importlib.util, json, os, sys
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("online_driver", sys.argv[1])
    driver = importlib.util.module_from_spec(spec); spec.loader.exec_module(driver)
    from tunekit.context import BoundReward
    from tunekit.plugins import hf
    from tunekit_trl.online import OnlineTrainer
    from tunekit_trl.online_losses import GrpoObjective
    from tunekit_trl.online_options import GrpoOptions
    folder, rank = Path(sys.argv[2]), os.environ["RANK"]
    options = GrpoOptions(batch_size=2, num_generations=4, num_iterations=2, beta=0.1, scale_rewards="batch",
        max_new_tokens=4, max_length=32, learning_rate=1e-3, samples=0, max_steps=5, validation=1, checkpoint_every=100)
    calls = []
    def tokens(prompts, completions, **columns):
        calls.append(1)
        if len(sys.argv) > 3 and rank == "1" and len(calls) == 2:
            raise ValueError("out of paper")
        return [sum(ids) for ids in columns["completion_ids"]]
    reward = BoundReward(name="tokens", reward=tokens)
    loaded = driver.tiny_pair()
    ctx = driver.online_context(folder, loaded, driver.SUMS[:5], options, [reward], validation=driver.SUMS[5:8])
    rows, _ = hf.prompt_rows(ctx, ctx.data, loaded.tokenizer, 28)
    held_out, _ = hf.prompt_rows(ctx, ctx.validation, loaded.tokenizer, 28)
    trainer = OnlineTrainer(ctx, loaded.model, loaded.tokenizer, rows, GrpoObjective(ctx.options), held_out)
    hf.train(ctx, trainer)
    weights = [float(p.detach().double().sum()) for p in loaded.model.parameters()]
    written = [row["completions"] for batch in trainer._written for row in batch if row["counts"]]
    log = [r for r in trainer.state.log_history if "reward" in r or "eval_reward" in r]
    (folder / f"out-{rank}.json").write_text(json.dumps([weights, written, log]))
"""


def _both(folder: Path, *more: str) -> list[tuple[int, str]]:
    """Exit code and output of each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = str(Path(__file__).with_name("online_driver.py"))
    started = [
        warm.start(
            ["-c", textwrap.dedent(CODE), driver, folder, *more],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(done.returncode, done.stdout + done.stderr) for done in ended]


@pytest.mark.slow
def test_two_processes_learn_one_policy(tmp_path: Path) -> None:
    """Five prompts in batches of two are three batches: in the second step one process has no prompt left."""
    for code, output in _both(tmp_path):
        assert code == 0, output
    (weights, written, log), (others, others_written, other_log) = (
        json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in range(2)
    )
    assert weights == others
    assert written != others_written
    assert [row.get("reward", row.get("eval_reward")) for row in log] == pytest.approx(
        [row.get("reward", row.get("eval_reward")) for row in other_log]
    )


@pytest.mark.slow
def test_a_reward_that_fails_in_one_process_ends_both(tmp_path: Path) -> None:
    """The other one does not wait for it for ever."""
    (code, output), (other_code, other_output) = _both(tmp_path, "fail")
    assert code == other_code == 1
    assert "Process 1 failed" in output and "out of paper" in output
    assert "Reward tokens failed: ValueError: out of paper" in other_output
