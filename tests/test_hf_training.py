"""Training through ``tunekit.plugins.hf``: loss, resume, cancel, damage, and what the process is left like."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunekit.cancel import CancelToken
from tunekit.context import StepContext
from tunekit.errors import ArtifactError, MissingDependencyError, OptionsError, RunCancelled, StepError
from tunekit.plugins import hf
from tunekit.plugins.hf import checkpoints
from tunekit.plugins.options import TrainOptions
from tunekit.testing import warm
from tunekit.testing.contexts import step_context

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class Recorder:
    """Collects what a step tells the core."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))

    def losses(self) -> dict[int, float]:
        return {f["global_step"]: f["values"]["loss"] for kind, f in self.events if kind == "metrics"}

    def notices(self) -> list[str]:
        return [f["message"] for kind, f in self.events if kind == "notice"]


def make_context(folder: Path, options: Any, *, emit: Any = None, cancel: CancelToken | None = None) -> StepContext:
    return step_context(folder, options, kind="sft", events=emit or Recorder(), cancel=cancel)


def tiny_model(dropout: float = 0.1) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        attention_dropout=dropout,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def unequal_rows(count: int = 32) -> list[dict[str, list[int]]]:
    draw = random.Random(3)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(3, 64) for _ in range(draw.randrange(4, 24))]
        rows.append({"input_ids": ids, "labels": [-100] * draw.randrange(1, len(ids) - 1)})
        rows[-1]["labels"] += ids[len(rows[-1]["labels"]) :]
    return rows


def pad(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": torch.tensor([r["input_ids"] + [0] * (longest - len(r["input_ids"])) for r in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
        ),
        "labels": torch.tensor([r["labels"] + [-100] * (longest - len(r["labels"])) for r in rows]),
    }


def make_trainer(ctx: StepContext, model: Any = None, rows: Any = None, **extra: Any) -> Any:
    return transformers.Trainer(
        model=model if model is not None else tiny_model(),
        args=hf.training_arguments(transformers.TrainingArguments, ctx, ctx.options, **extra),
        train_dataset=rows or unequal_rows(),
        data_collator=pad,
        callbacks=[hf.TunekitCallback(ctx)],
    )


def options(**values: Any) -> TrainOptions:
    return TrainOptions(**{"learning_rate": 1e-2, "batch_size": 2, "max_steps": 12, **values})


def run(folder: Path, opts: TrainOptions, **extra: Any) -> tuple[Recorder, Any, Any]:
    seen = Recorder()
    ctx = make_context(folder, opts, emit=seen)
    trainer = make_trainer(ctx, **extra)
    outcome = hf.train(ctx, trainer)
    return seen, outcome, trainer


# The loss.


def test_accumulation_is_normalised_over_the_whole_batch(tmp_path: Path) -> None:
    many, _, a = run(tmp_path / "a", options(batch_size=1, gradient_accumulation=8, max_steps=4), model=tiny_model(0.0))
    one, _, b = run(tmp_path / "b", options(batch_size=8, gradient_accumulation=1, max_steps=4), model=tiny_model(0.0))
    assert list(many.losses()) == list(one.losses()) == [1, 2, 3, 4]
    for step, loss in one.losses().items():
        assert many.losses()[step] == pytest.approx(loss, rel=1e-5)
    for left, right in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-4)


def test_first_loss_is_the_token_mean_of_the_batch(tmp_path: Path) -> None:
    rows = unequal_rows(8)
    model = tiny_model(0.0)
    batch = pad(rows)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 64), targets.reshape(-1), ignore_index=-100)
    seen, outcome, _ = run(tmp_path, options(batch_size=8, max_steps=1), model=model, rows=rows)
    assert seen.losses()[1] == pytest.approx(float(expected), rel=1e-6)
    assert outcome.metrics["tokens"] == int((targets != -100).sum())


def test_same_seed_same_losses(tmp_path: Path) -> None:
    first, _, _ = run(tmp_path / "a", options())
    second, _, _ = run(tmp_path / "b", options())
    assert first.losses() == second.losses()
    assert len(first.losses()) == 12


# Checkpoints and resume.


def test_checkpoints_are_sealed_and_rotated(tmp_path: Path) -> None:
    seen, outcome, _ = run(tmp_path, options(keep_checkpoints=3))
    folder = tmp_path / "checkpoints"
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["checkpoint-10", "checkpoint-12", "checkpoint-8"]
    assert all(checkpoints.problem(folder / name) is None for name in left)
    saved = [fields["global_step"] for kind, fields in seen.events if kind == "checkpoint"]
    assert saved == [2, 4, 6, 8, 10, 12]
    assert outcome.global_step == outcome.max_steps == 12


def test_checkpoint_every_is_kept(tmp_path: Path) -> None:
    seen, _, _ = run(tmp_path, options(checkpoint_every=5))
    assert [f["global_step"] for kind, f in seen.events if kind == "checkpoint"] == [5, 10, 12]


def test_cancel_leaves_a_checkpoint_on_the_same_curve(tmp_path: Path) -> None:
    whole, _, _ = run(tmp_path / "whole", options())
    token = CancelToken()
    first = Recorder()

    def emit(kind: str, **fields: Any) -> None:
        first(kind, **fields)
        if kind == "metrics" and fields["global_step"] == 5:
            token.cancel("enough")

    ctx = make_context(tmp_path / "cut", options(checkpoint_every=100), emit=emit, cancel=token)
    with pytest.raises(RunCancelled) as stopped:
        hf.train(ctx, make_trainer(ctx))
    assert stopped.value.details["global_step"] == 5, "at the very step"
    assert Path(stopped.value.details["checkpoint"]).name == "checkpoint-5"
    rest, outcome, _ = run(tmp_path / "cut", options(checkpoint_every=100))
    assert outcome.resumed_from_step == 5
    assert list(rest.losses()) == list(range(6, 13))
    assert {**first.losses(), **rest.losses()} == whole.losses()
    assert outcome.metrics["loss_first"] == whole.losses()[1]
    assert outcome.metrics["loss_mean"] == pytest.approx(sum(whole.losses().values()) / 12)


def test_cancel_stops_between_logged_steps(tmp_path: Path) -> None:
    token = CancelToken()

    def emit(kind: str, **fields: Any) -> None:
        if kind == "checkpoint":
            token.cancel("enough")

    ctx = make_context(tmp_path, options(checkpoint_every=2), emit=emit, cancel=token)
    with pytest.raises(RunCancelled) as stopped:
        hf.train(ctx, make_trainer(ctx, logging_steps=100))
    assert stopped.value.details["global_step"] == 3
    assert Path(stopped.value.details["checkpoint"]).name == "checkpoint-3"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda data: data[: len(data) // 2]),
        ("model.safetensors", lambda data: b"\xff" * len(data)),
        ("optimizer.pt", None),
        ("optimizer.pt", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("trainer_state.json", lambda data: b"{"),
        (checkpoints.MARKER, None),
        (checkpoints.MARKER, lambda data: data[:10]),
    ],
)
def test_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, damage: Any) -> None:
    whole, _, _ = run(tmp_path / "whole", options())
    folder = tmp_path / "cut"
    token = CancelToken()

    def stop(kind: str, **fields: Any) -> None:
        if kind == "metrics" and fields["global_step"] == 8:
            token.cancel()

    ctx = make_context(folder, options(keep_checkpoints=2), emit=stop, cancel=token)
    with pytest.raises(RunCancelled):
        hf.train(ctx, make_trainer(ctx))
    newest = folder / "checkpoints" / "checkpoint-8"
    victim = newest / name
    if damage is None:
        victim.unlink()
    else:
        victim.write_bytes(damage(victim.read_bytes()))
    seen, outcome, _ = run(folder, options(keep_checkpoints=1))
    assert outcome.resumed_from_step == 6
    (notice,) = seen.notices()
    assert "checkpoint-8" in notice and "checkpoint-6 is used" in notice
    assert name in notice or name == checkpoints.MARKER
    assert seen.losses() == {step: loss for step, loss in whole.losses().items() if step > 6}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-12"]


def test_weights_alone_are_no_checkpoint_to_continue_from(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    checkpoints.seal(folder, 4)
    good, problems = checkpoints.good_checkpoint(tmp_path)
    assert good is None
    assert problems == ["checkpoint-4: it holds weights only: there is no optimizer state to continue with"]
    (folder / "optimizer.pt").write_bytes(b"state")
    checkpoints.seal(folder, 4)
    assert checkpoints.good_checkpoint(tmp_path) == (folder, [])


def test_all_checkpoints_damaged_starts_over(tmp_path: Path) -> None:
    whole, _, _ = run(tmp_path / "a", options())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b" / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(b"")
    seen, outcome, _ = run(tmp_path / "b", options())
    assert outcome.resumed_from is None
    assert "from the beginning" in seen.notices()[0]
    assert seen.losses() == whole.losses()


DRIVER = textwrap.dedent(
    """
    import json, os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_hf_training as t
    folder, kill_at = Path(sys.argv[2]), int(sys.argv[3])
    log = (folder.parent / (folder.name + ".jsonl")).open("a")
    def emit(kind, **fields):
        if kind == "metrics":
            log.write(json.dumps([fields["global_step"], fields["values"]["loss"]]) + "\\n"); log.flush()
            if fields["global_step"] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    ctx = t.make_context(folder, t.options(checkpoint_every=5, gradient_accumulation=2), emit=emit)
    t.hf.train(ctx, t.make_trainer(ctx))
    """
)


def test_killed_run_continues_on_the_same_curve(tmp_path: Path) -> None:
    def drive(name: str, kill_at: int) -> int:
        arguments = ["-c", DRIVER, str(Path(__file__).parent), str(tmp_path / name), str(kill_at)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if name == "whole":  # in a new interpreter, whose hashes are other ones
            return subprocess.run([sys.executable, *arguments], capture_output=True, env=env).returncode
        return warm.run(arguments, env=env).returncode

    assert drive("whole", -1) == 0
    assert drive("cut", 8) == -signal.SIGKILL
    assert drive("cut", -1) == 0
    whole = dict(map(json.loads, (tmp_path / "whole.jsonl").read_text().splitlines()))
    cut = [tuple(json.loads(line)) for line in (tmp_path / "cut.jsonl").read_text().splitlines()]
    assert [step for step, _ in cut] == [*range(1, 9), *range(6, 13)]
    assert all(whole[step] == loss for step, loss in cut)


# Bad losses and bad disks.


def test_nan_loss_stops_before_anything_bad_is_saved(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, options(checkpoint_every=1), emit=(seen := Recorder()))
    trainer = make_trainer(ctx)

    class Poison(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.model.norm.weight[0] = math.nan

    trainer.add_callback(Poison())
    with pytest.raises(StepError) as caught:
        hf.train(ctx, trainer)
    assert caught.value.code == "nan-loss"
    assert caught.value.details["global_step"] == 5
    assert Path(caught.value.details["checkpoint"]).name == "checkpoint-4"
    assert "checkpoint-4" in str(caught.value) and "learning_rate" in str(caught.value)
    good, problems = hf.good_checkpoint(tmp_path / "checkpoints")
    assert good is not None and good.name == "checkpoint-4" and not problems
    assert all(math.isfinite(loss) for loss in seen.losses().values())


def test_weights_that_become_infinite_are_not_saved(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, options(learning_rate=1e36, checkpoint_every=1, max_grad_norm=0.0))
    with pytest.raises(StepError) as caught:
        hf.train(ctx, make_trainer(ctx))
    assert caught.value.code == "nan-loss"
    for path in (tmp_path / "checkpoints").glob("checkpoint-*/model.safetensors"):
        from safetensors.torch import load_file

        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(path).values())


def test_read_only_folder_is_an_artifact_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = make_context(tmp_path, options())
    trainer = make_trainer(ctx)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(30, "Read-only file system", str(tmp_path / "checkpoints" / "x"))

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(ArtifactError) as caught:
        hf.train(ctx, trainer)
    assert caught.value.code == "read-only"
    assert "MB free" in caught.value.found
    assert hf.good_checkpoint(tmp_path / "checkpoints") == (None, [])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device"), "disk-full"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "disk-full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "disk-full"),
        (PermissionError(13, "Permission denied"), "not-writable"),
    ],
)
def test_storage_errors_are_recognised(tmp_path: Path, error: Exception, code: str) -> None:
    with pytest.raises(ArtifactError) as caught, hf.storage_errors(tmp_path):
        raise error
    assert caught.value.code == code
    assert str(tmp_path) in str(caught.value)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hf.storage_errors(tmp_path):
        raise ZeroDivisionError


def test_full_disk_keeps_the_last_checkpoint(make_disk: Callable[[str], Path]) -> None:
    disk = make_disk("900k")
    ctx = make_context(disk, options(checkpoint_every=2, keep_checkpoints=9))
    with pytest.raises(ArtifactError) as caught:
        hf.train(ctx, make_trainer(ctx))
    assert caught.value.code == "disk-full"
    assert caught.value.details["free_bytes"] is not None
    good, problems = hf.good_checkpoint(disk / "checkpoints")
    assert good is not None and not problems


# Arguments.


def test_arguments_of_this_machine(tmp_path: Path) -> None:
    args = hf.training_arguments(transformers.TrainingArguments, make_context(tmp_path, options()), options())
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert args.use_cpu and not args.bf16 and not args.fp16 and args.device.type == "cpu"
        assert hf.compute_dtype() is torch.float32
    assert args.report_to == [] and args.disable_tqdm and not args.logging_nan_inf_filter
    assert args.seed == args.data_seed == 7
    assert Path(args.output_dir) == tmp_path / "checkpoints"


def test_warmup_is_a_share_or_steps(tmp_path: Path) -> None:
    for warmup, expected in ((0.25, 5), (3.0, 3)):
        opts = options(warmup=warmup)
        args = hf.training_arguments(transformers.TrainingArguments, make_context(tmp_path, opts), opts)
        assert args.get_warmup_steps(20) == expected


def test_argument_the_library_lacks(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, options())
    assert hf.training_arguments(transformers.TrainingArguments, ctx, ctx.options, no_such_thing=None)
    with pytest.raises(MissingDependencyError) as caught:
        hf.training_arguments(transformers.TrainingArguments, ctx, ctx.options, no_such_thing=3)
    assert f"transformers {transformers.__version__}" in str(caught.value)
    assert "no_such_thing" in str(caught.value)


def test_unknown_optimizer_suggests_known_ones(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, options(optimizer="adamw_torhc"))
    with pytest.raises(OptionsError) as caught:
        hf.training_arguments(transformers.TrainingArguments, ctx, ctx.options)
    assert "adamw_torch" in caught.value.suggestions


def test_gradient_checkpointing_gives_the_same_losses(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    plain, _, _ = run(tmp_path / "a", options(max_steps=4), model=tiny_model(0.0))
    saving, _, _ = run(tmp_path / "b", options(max_steps=4, gradient_checkpointing=True), model=tiny_model(0.0))
    assert saving.losses() == pytest.approx(plain.losses(), rel=1e-6)
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning)]


# The process.


def test_training_prints_nothing_and_leaves_the_process_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    from transformers.utils import logging as hf_logging

    environment, folder = dict(os.environ), Path.cwd()
    handlers = list(logging.getLogger("transformers").handlers)
    bars = hf_logging.is_progress_bar_enabled()
    capfd.readouterr()
    run(tmp_path, options())
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    assert dict(os.environ) == environment and Path.cwd() == folder
    assert logging.getLogger("transformers").handlers == handlers
    assert hf_logging.is_progress_bar_enabled() == bars


def test_quiet_forwards_log_records(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    with caplog.at_level(logging.WARNING, logger="tunekit"), hf.quiet(), hf.quiet():
        logging.getLogger("transformers.trainer").warning("about %s", "something")
    assert ("transformers.trainer", logging.WARNING, "about something") in caplog.record_tuples


def test_a_process_of_a_launcher_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before accelerate makes it the current one, as when a reward model is loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for rank, index in (("1", 1), ("7", 0), ("", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert hf.default_device() == torch.device("cuda", index)
