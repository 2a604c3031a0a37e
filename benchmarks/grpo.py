"""GRPO, tunekit against TRL's GRPOTrainer: seconds per optimizer step, generation included, and peak memory.

Both train the same model in full on the same questions of GSM8K, with as many completions of the same greatest length,
the same reward and optimizer, no reference, checkpoints off. They run in turn, each in a process of its own; the time
is that of ``trainer.train()``. What is written is drawn at random, so completions differ, and a step's time with them:
take a model that does not end early, or enough steps.

    python benchmarks/grpo.py test.jsonl --model FOLDER [--steps 4] [--rounds 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import _children

CONTENDERS = ("trl", "tunekit")
PROMPTS, RATE, SEED = 4, 1e-6, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="questions: GSM8K's test.jsonl")
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps")
    parser.add_argument("--generations", type=int, default=8, help="completions of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="longest completion")
    _children.add_arguments(parser)
    _children.start(parser.parse_args(), _compare, _child)


def _compare(arguments: argparse.Namespace) -> None:
    found = _children.in_turn(
        CONTENDERS,
        arguments.rounds,
        lambda name: _children.run(arguments, name),
        lambda name, made: f"{name:8} {made}",
        there_and_back=True,
    )
    best = {name: min(made["seconds_per_step"] for made in runs) for name, runs in found.items()}
    memory = {name: median(made["peak_gib"] for made in runs) for name, runs in found.items()}
    times = best["trl"] / best["tunekit"]
    print(f"seconds a step: tunekit {best['tunekit']:.3f}, trl {best['trl']:.3f}, {times:.2f} times as fast")
    print(f"peak memory: tunekit {memory['tunekit']:.2f} GiB, trl {memory['trl']:.2f} GiB")


def _reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def _child(arguments: argparse.Namespace) -> _children.Result:
    lines = arguments.data.read_text("utf-8").splitlines()[: PROMPTS * arguments.steps]
    rows = [{"prompt": json.loads(line)["question"]} for line in lines]
    run = _trl if arguments.child == "trl" else _tunekit
    seconds, tokens = run(arguments, rows)
    return {
        "seconds_per_step": round(seconds / arguments.steps, 4),
        "tokens_per_completion": round(tokens, 2),
        "peak_gib": round(_children.memory() / 2**30, 3),
    }


def _trl(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> tuple[float, float]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * arguments.generations,
            num_generations=arguments.generations,
            max_completion_length=arguments.tokens,
            max_steps=arguments.steps,
            learning_rate=RATE,
            seed=SEED,
            **_children.PLAIN,
        )
        model, tokenizer = _children.load(arguments.model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        trainer = GRPOTrainer(
            model=model,
            args=config,
            reward_funcs=_reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        seconds = _children.trained(trainer)["seconds"]
        lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "loss" in row]
    return seconds, sum(lengths) / len(lengths)


def _tunekit(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> tuple[float, float]:
    import tunekit

    line = tunekit.Pipeline(model=_children.load(arguments.model)).align(
        method="grpo",
        prompts=rows,
        reward=_reward,
        batch_size=PROMPTS,
        num_generations=arguments.generations,
        max_new_tokens=arguments.tokens,
        max_length=1024,
        max_steps=arguments.steps,
        learning_rate=RATE,
        on_bad_row="skip",
        checkpoint_every=arguments.steps + 1,
        samples=0,
        seed=SEED,
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = line.run(workdir=folder).step("align").artifact.metrics
    return float(metrics["seconds"]), float(metrics["completion_length"])


if __name__ == "__main__":
    main()
