"""Supervised fine-tuning, tunekit against TRL's SFTTrainer: trained tokens per second and peak memory, same work.

Both train SmolLM2-135M-Instruct through LoRA on the same rows of an Alpaca file, with the same chat template, limits,
seed and optimizer, gradient checkpointing off, checkpoints off. They run in turn, each in a process of its own. Both
are timed over the same call, the whole of ``trainer.train()``, and their peak memory is read as it returns; the peak
of the whole process, with whatever a step does after training (saving, and with tunekit proving the merge), is given
beside it.

    python benchmarks/sft.py alpaca_en_demo.json [--rows 64] [--epochs 1] [--rounds 2] [--threads 2] [--profile]

Contenders: ``trl`` (its defaults), ``trl-grouped`` (rows of similar length together), ``trl-packed`` (blocks of
max_length), ``tunekit`` (its defaults: random rows), ``tunekit-tokens`` (batches filled by tokens).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import _children

CONTENDERS = ("trl", "trl-grouped", "trl-packed", "tunekit", "tunekit-tokens")
LENGTH, BATCH, RANK, RATE, SEED = 512, 8, 8, 2e-4, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an Alpaca file, such as LLaMA-Factory's alpaca_en_demo.json")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="optimizer steps in place of epochs")
    _children.add_arguments(parser)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--profile", action="store_true", help="where tunekit's time goes")
    parser.add_argument("--model", help="folder of another model")
    _children.start(parser.parse_args(), _compare, _child)


def _compare(arguments: argparse.Namespace) -> None:
    _children.run(arguments, "prepare")
    peak = _children.run(arguments, "peak")["flops"]
    print(f"matrix products, float32, {arguments.threads} threads: {peak / 1e9:.0f} GFLOP/s")
    found = _children.in_turn(
        arguments.only,
        arguments.rounds,
        lambda name: _children.run(arguments, name),
        lambda name, made: (
            f"  {name}: {made['tokens'] / made['seconds']:.1f} trained tokens/s, {made['seconds']:.1f} s"
        ),
    )
    _report(found, peak)


def _report(results: dict[str, list[_children.Result]], peak: float) -> None:
    best = _children.fastest(results, per="tokens")
    speed = {name: run["tokens"] / run["seconds"] for name, run in best.items()}
    print()
    print(
        "contender       trained tok/s  median  input tok/s  padding  peak memory  above the model  whole process"
        "  share of peak"
    )
    for name, run in best.items():
        middle = median(each["tokens"] / each["seconds"] for each in results[name])
        print(
            f"{name:<15} {speed[name]:>13.1f} {middle:>7.1f} {run['input_tokens'] / run['seconds']:>12.1f}"
            f" {run['padding']:>8.0%} {run['memory'] / 2**30:>9.2f} GB {run['above'] / 2**30:>13.2f} GB"
            f" {run['whole'] / 2**30:>11.2f} GB"
            f" {run['flops'] / run['seconds'] / peak:>14.0%}"
        )
    for name in ("tunekit", "tunekit-tokens"):
        if name not in best:
            continue
        theirs = [other for other in best if other.startswith("trl")]
        print()
        for other in theirs:
            print(
                f"{name} / {other}: {speed[name] / speed[other]:.2f} times the trained tokens/s,"
                f" {best[name]['memory'] / best[other]['memory']:.2f} times the peak memory"
            )
    print()
    for name, run in best.items():
        print(f"loss per step, {name}: {' '.join(f'{loss:.4f}' for loss in run['losses'])}")


def _child(arguments: argparse.Namespace) -> _children.Result:
    if arguments.child == "prepare":
        loaded = _children.resolved(arguments.model)
        _children.keep(loaded.model, loaded.tokenizer, arguments.folder)
        return {}
    if arguments.child == "peak":
        import torch

        from tunekit.plugins import hf

        return {"flops": max(hf.measured_peak(torch.device("cpu"), torch.float32) for _ in range(3))}
    rows = json.loads(arguments.data.read_text(encoding="utf-8"))[: arguments.rows]
    rows = [
        {"prompt": row["instruction"] + (f"\n{row['input']}" if row["input"] else ""), "completion": row["output"]}
        for row in rows
    ]
    run = _tunekit if arguments.child.startswith("tunekit") else _trl
    with tempfile.TemporaryDirectory() as folder:
        return _children.with_memory(run(arguments, rows, Path(folder)))


def _trl(arguments: argparse.Namespace, rows: list[dict[str, str]], folder: Path) -> _children.Result:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = _children.load(arguments.folder)
    before = _children.memory()
    talk = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in rows
    ]
    kind = arguments.child
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            num_train_epochs=arguments.epochs,
            max_steps=arguments.steps or -1,
            learning_rate=RATE,
            max_length=LENGTH,
            packing=kind == "trl-packed",
            train_sampling_strategy="group_by_length" if kind == "trl-grouped" else "random",
            seed=SEED,
            **_children.PLAIN,
        ),
        train_dataset=Dataset.from_list(talk),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
    )
    counts = {"tokens": 0, "input": 0, "width": 0}
    proper = trainer.training_step

    def counted(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        labels = inputs["labels"] if "labels" in inputs else inputs["shift_labels"]
        counts["tokens"] += int((labels[:, 1:] != -100).sum())
        width = inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        counts["input"] += width if mask is None else int(mask.sum())
        counts["width"] += width
        return proper(model, inputs, *more, **named)

    trainer.training_step = counted
    made = _children.trained(trainer)
    return {
        **made,
        "tokens": counts["tokens"],
        "input_tokens": counts["input"],
        "padding": 1 - counts["input"] / counts["width"],
        "flops": _flops(trainer.model, counts["input"], counts["tokens"], len(rows)),
        "before": before,
    }


def _tunekit(arguments: argparse.Namespace, rows: list[dict[str, str]], folder: Path) -> _children.Result:
    from tunekit import Pipeline
    from tunekit.plugins import hf

    model, tokenizer = _children.load(arguments.folder)
    before = _children.memory()
    counts = {"real": 0, "width": 0}

    def counted(module: Any, positional: Any, named: dict[str, Any]) -> None:
        width = named["input_ids"].numel()
        mask = named.get("attention_mask")
        counts["real"] += width if mask is None else int(mask.sum())
        counts["width"] += width

    @contextlib.contextmanager
    def counting(trainer: Any) -> Iterator[None]:
        hook = trainer.model.register_forward_pre_hook(counted, with_kwargs=True)
        yield
        hook.remove()

    def facts(trainer: Any) -> _children.Result:
        history = [row for row in trainer.state.log_history if "loss" in row]
        tokens, seen = (sum(row[name] for row in history) for name in ("tokens", "input_tokens"))
        flops = _flops(trainer.model, seen, tokens, len(rows))
        return {"tokens": tokens, "input_tokens": seen, "flops": flops}

    made = _children.watch_training(hf.TokenTrainer, profile=arguments.profile, around=counting, facts=facts)
    filled: dict[str, Any] = (
        {"max_tokens_per_batch": BATCH * 160} if arguments.child == "tunekit-tokens" else {"batch_size": BATCH}
    )
    length: dict[str, Any] = {"max_steps": arguments.steps} if arguments.steps else {"epochs": arguments.epochs}
    (
        Pipeline(model=(model, tokenizer))
        .sft(data=rows, learning_rate=RATE, max_length=LENGTH, checkpoint_every=10**6, **filled, **length)
        .lora(r=RANK, alpha=16, dropout=0.0, targets="all-linear")
        .run(workdir=folder, seed=SEED)
    )
    return {**made, "padding": 1 - counts["real"] / counts["width"], "before": before}


def _flops(model: Any, tokens: float, targets: float, rows: int) -> float:
    """Useful floating-point operations of the training loop."""
    from tunekit.plugins import hf

    per_token: float = hf.flops_per_token(model, tokens / rows, targets=targets / tokens)
    return per_token * tokens


if __name__ == "__main__":
    main()
