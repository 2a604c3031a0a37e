"""Two processes learn from pairs what one learns, and share one reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit.testing.beside import beside

processes = beside(__file__, "test_trl_processes")

CODE = """
    import importlib.util, json, sys
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("trl_driver", sys.argv[1])
    driver = importlib.util.module_from_spec(spec); spec.loader.exec_module(driver)
    from tunekit.data import load_dataset
    from tunekit.plugins import LoadedModel, hf
    from tunekit_trl import dpo
    from tunekit_trl.options import DpoOptions
    folder, size, accumulation = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    options = DpoOptions(loss_type=["sigmoid", "sft"], batch_size=size, gradient_accumulation=accumulation, epochs=2.0,
        learning_rate=0.05, optimizer="sgd", max_grad_norm=0.0, validation=1, checkpoint_every=100, samples=0)
    ctx = driver.context("align", folder, LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer()),
        driver.PREFERENCES[:13], options)
    ctx.validation = load_dataset(driver.PREFERENCES[13:], accepts=("preference",))
    train, seen = hf.train, []
    def look(ctx, trainer):
        seen.append(trainer)
        made = train(ctx, trainer)
        if trainer.is_world_process_zero():
            log = [r for r in trainer.state.log_history if "loss" in r or "eval_loss" in r]
            keys = ("loss", "eval_loss", "rewards/margins", "rewards/accuracies", "eval_rewards/margins", "grad_norm",
                "logps/chosen", "mean_token_accuracy", "tokens")
            weights = [float(p.detach().double().sum()) for p in trainer.model.parameters()]
            kept = [{k: r[k] for k in keys if k in r} for r in log]
            Path(sys.argv[5]).write_text(json.dumps([kept, weights]))
        raise SystemExit(0)
    hf.train = look
    dpo.DpoTrainer().run(ctx)
"""


@pytest.mark.slow
def test_two_processes_learn_from_pairs_what_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T1: thirteen pairs in batches of two; one process has nothing left in the last step."""
    monkeypatch.setattr(processes, "CODE", CODE)
    one, weights = processes.run(tmp_path / "one", 1, 2, 2)
    two, other = processes.run(tmp_path / "two", 2, 2, 1)
    assert len(one) == len(two) == 10
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys() and len(mine) >= 2
        for key, value in theirs.items():
            assert mine[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    assert other == pytest.approx(weights, rel=1e-4, abs=1e-4)
    assert [len(list((tmp_path / name / "step" / "reference").iterdir())) for name in ("one", "two")] == [2, 2]


@pytest.mark.slow
def test_a_process_without_held_out_rows_measures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One held-out pair for two processes; each of which computes its share of the reference."""
    code = CODE.replace("PREFERENCES[13:]", "PREFERENCES[13:14]").replace(
        "    train, seen = hf.train, []\n",
        """    train, seen, asked = hf.train, [], []
    sums = hf.CompletionTrainer.sums
    hf.CompletionTrainer.sums = lambda self, model, groups: (asked.append(len(groups)), sums(self, model, groups))[1]
""",
    )
    code = code.replace("json.dumps([kept, weights])", "json.dumps([kept, asked])")
    assert "asked.append" in code and "kept, asked" in code
    monkeypatch.setattr(processes, "CODE", code)
    one, alone = processes.run(tmp_path / "one", 1, 2, 2)
    two, share = processes.run(tmp_path / "two", 2, 2, 1)
    assert alone == [13, 1] and share == [7, 1]
    measured = [[row for row in log if "eval_loss" in row] for log in (one, two)]
    assert len(measured[0]) == len(measured[1]) >= 1
    for mine, theirs in zip(measured[1], measured[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_a_wrong_reference_in_one_process_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = CODE.replace(
        "        made = train(ctx, trainer)\n",
        """        if trainer.args.process_index == 1:
            rows = trainer.train_dataset.rows
            rows.set_column("ref_chosen_logps", [row["ref_chosen_logps"] + 50 for row in rows])
        try:
            train(ctx, trainer)
        except Exception as error:
            if trainer.is_world_process_zero():
                Path(sys.argv[5]).write_text(json.dumps([error.code, error.details["reward"]]))
            raise SystemExit(0)
        raise SystemExit("nothing was found")
""",
    )
    assert "nothing was found" in code
    monkeypatch.setattr(processes, "CODE", code)
    found, reward = processes.run(tmp_path / "two", 2, 2, 1)
    assert found == "reference-mismatch" and reward == pytest.approx(5.0, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("ctx.cancel.cancel('enough')", "RunCancelled"),
        ("trainer.sums = lambda model, groups: 1 / 0", "StepError other-process: ZeroDivisionError"),
    ],
)
def test_what_ends_the_reference_in_one_process_ends_all(
    fault: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one says so, and does not wait for ever."""
    code = CODE.replace(
        "    dpo.DpoTrainer().run(ctx)\n",
        f"""    import os
    from tunekit_trl import alignment
    computed = alignment.reference_logps
    def with_fault(ctx, trainer, groups):
        if trainer.args.process_index == 1:
            {fault}
        return computed(ctx, trainer, groups)
    alignment.reference_logps = with_fault
    try:
        dpo.DpoTrainer().run(ctx)
    except Exception as error:
        if os.environ["RANK"] == "0":
            Path(sys.argv[5]).write_text(json.dumps(f"{{type(error).__name__}} {{error.code}}: {{error}}"))
""",
    )
    assert "with_fault" in code
    monkeypatch.setattr(processes, "CODE", code)
    found = processes.run(tmp_path / "two", 2, 2, 1)
    assert found.startswith(seen.split()[0]) and all(part in found for part in seen.split(": ")), found
