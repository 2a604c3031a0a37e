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
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CONTENDERS = ("trl", "trl-grouped", "trl-packed", "tunekit", "tunekit-tokens")
LENGTH, BATCH, RANK, RATE, SEED = 512, 8, 8, 2e-4, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an Alpaca file, such as LLaMA-Factory's alpaca_en_demo.json")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="optimizer steps in place of epochs")
    parser.add_argument("--rounds", type=int, default=2, help="how often each contender runs; the fastest run counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--profile", action="store_true", help="where tunekit's time goes")
    parser.add_argument("--child", choices=(*CONTENDERS, "peak", "prepare"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_child(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.model = Path(folder)
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    _run(arguments, "prepare", environment)
    peak = _run(arguments, "peak", environment)["flops"]
    print(f"matrix products, float32, {arguments.threads} threads: {peak / 1e9:.0f} GFLOP/s")
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        for name in arguments.only:
            results.setdefault(name, []).append(_run(arguments, name, environment))
            made = results[name][-1]
            print(f"  {name}: {made['tokens'] / made['seconds']:.1f} trained tokens/s, {made['seconds']:.1f} s")
    _report(results, peak)


def _run(arguments: argparse.Namespace, name: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, str(arguments.data), "--child", name, "--threads", str(arguments.threads)]
    command += ["--model", str(arguments.model), "--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
    command += ["--steps", str(arguments.steps)] if arguments.steps else []
    command += ["--profile"] if arguments.profile and name.startswith("tunekit") else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "profile" in made:
        print(made.pop("profile"))
    return made


def _report(results: dict[str, list[dict[str, Any]]], peak: float) -> None:
    best = {name: max(runs, key=lambda run: run["tokens"] / run["seconds"]) for name, runs in results.items()}
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


def _child(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.child == "prepare":
        return _prepare(arguments.model)
    if arguments.child == "peak":
        from tunekit.plugins import hf

        return {"flops": max(hf.measured_peak(torch.device("cpu"), torch.float32) for _ in range(3))}
    rows = json.loads(arguments.data.read_text(encoding="utf-8"))[: arguments.rows]
    rows = [
        {"prompt": row["instruction"] + (f"\n{row['input']}" if row["input"] else ""), "completion": row["output"]}
        for row in rows
    ]
    run = _tunekit if arguments.child.startswith("tunekit") else _trl
    with tempfile.TemporaryDirectory() as folder:
        made = run(arguments, rows, Path(folder))
    made["whole"] = _memory()
    made["above"] = made["memory"] - made.pop("before")
    return made


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _model(folder: Path) -> Any:
    """The model and its tokenizer, from plain files: unpacking the 4-bit ones takes memory of its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def _prepare(folder: Path) -> dict[str, Any]:
    from tunekit.session import Session

    loaded = Session().resolve_model("smollm2-135m-instruct").load()
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return {}


def _trl(arguments: argparse.Namespace, rows: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = _model(arguments.model)
    before = _memory()
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
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=SEED,
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
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    memory = _memory()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert torch.get_num_threads() == arguments.threads
    return {
        "seconds": seconds,
        "tokens": counts["tokens"],
        "input_tokens": counts["input"],
        "padding": 1 - counts["input"] / counts["width"],
        "losses": losses,
        "flops": _flops(trainer.model, counts["input"], counts["tokens"], len(rows)),
        "before": before,
        "memory": memory,
    }


def _tunekit(arguments: argparse.Namespace, rows: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    from tunekit import Pipeline
    from tunekit.plugins import hf

    model, tokenizer = _model(arguments.model)
    before = _memory()
    counts: dict[str, Any] = {"real": 0, "width": 0}
    proper = hf.TokenTrainer.train

    def counted(module: Any, positional: Any, named: dict[str, Any]) -> None:
        width = named["input_ids"].numel()
        mask = named.get("attention_mask")
        counts["real"] += width if mask is None else int(mask.sum())
        counts["width"] += width

    def timed(self: Any, *more: Any, **named: Any) -> Any:
        from contextlib import nullcontext

        from torch.profiler import profile

        hook = self.model.register_forward_pre_hook(counted, with_kwargs=True)
        began = time.perf_counter()
        with profile() if arguments.profile else nullcontext() as found:
            output = proper(self, *more, **named)
        counts["seconds"] = time.perf_counter() - began
        counts["memory"] = _memory()
        hook.remove()
        if found is not None:
            counts["profile"] = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
        history = [row for row in self.state.log_history if "loss" in row]
        counts["losses"] = [row["loss"] for row in history]
        counts["tokens"] = sum(row["tokens"] for row in history)
        counts["input_tokens"] = sum(row["input_tokens"] for row in history)
        counts["flops"] = _flops(self.model, counts["input_tokens"], counts["tokens"], len(rows))
        return output

    hf.TokenTrainer.train = timed
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
    padding = 1 - counts.pop("real") / counts.pop("width")
    return {**counts, "padding": padding, "before": before}


def _flops(model: Any, tokens: float, targets: float, rows: int) -> float:
    """Useful floating-point operations of the training loop."""
    from tunekit.plugins import hf

    per_token: float = hf.flops_per_token(model, tokens / rows, targets=targets / tokens)
    return per_token * tokens


if __name__ == "__main__":
    main()
