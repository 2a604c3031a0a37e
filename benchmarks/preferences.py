"""Real preference data, each set by its path alone: a few steps of the method that fits, and the held-out accuracy.

Trains SmolLM2-135M-Instruct through LoRA on each set and prints how often, on held-out rows, the answer that people
preferred has the higher reward: of pairs, the chosen one over the rejected one; of judged answers, a good one over a
bad one, over all such pairs. Chance is 50%; the standard error of a share of ``n`` independent pairs is at most
50% / sqrt(n). Ranked lists become pairs, and rows of one list or tree may be on both sides of the split.

    python benchmarks/preferences.py data-folder [--only kto_en_demo] [--rows 96] [--held-out 48] [--steps 24]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

SETS = {
    "dpo_en_demo": ("llamafactory/dpo_en_demo.json", "dpo"),
    "kto_en_demo": ("llamafactory/kto_en_demo.json", "kto"),
    "hh-rlhf": ("hh-rlhf/harmless-base/test.jsonl.gz", "dpo"),
    "open-assistant-thumbs": ("open-assistant/en_100_message.jsonl", "kto"),
    "oaast_rm_zh": ("open-assistant/oaast_rm_zh.json", "dpo"),
}
ACCURACY = ("eval_rewards/pairwise_accuracy", "eval_rewards/accuracies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the sets, laid out as their paths in this file")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--method", help="in place of the method of each set, such as bco for judged answers")
    parser.add_argument("--rows", type=int, default=144, help="rows of each set, held-out ones included")
    parser.add_argument("--held-out", type=int, default=48, help="rows that are measured on")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    print(f"{'set':<22} {'method':<6} {'rows':>5} {'held out':>8} {'accuracy':>8} {'margin':>7} {'loss':>15} {'s':>6}")
    for name in arguments.only:
        print(_line(name, arguments), flush=True)


def _line(name: str, arguments: argparse.Namespace) -> str:
    from tunekit import Pipeline

    path, method = SETS[name]
    method = arguments.method or method
    options: dict[str, Any] = {
        "method": method,
        "data": str(arguments.folder / path),
        "limit": arguments.rows,
        "shuffle": True,
        "validation": arguments.held_out,
        "max_steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "max_length": arguments.max_length,
        "learning_rate": arguments.learning_rate,
        "beta": arguments.beta,
        "on_bad_row": "skip",
        "samples": 0,
    }
    pipeline = Pipeline(model=arguments.model).align(**options).lora(r=8, alpha=16)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as workdir:
        step = pipeline.run(workdir=workdir, seed=0).steps[-1]
        metrics, facts = step.artifact.metrics, step.artifact.details["data"]
    accuracy = next((metrics[key] for key in ACCURACY if key in metrics), float("nan"))
    losses = f"{metrics['loss_first']:.4f} {metrics['loss']:.4f}"
    return (
        f"{name:<22} {method:<6} {facts['rows']:>5} {facts['held_out_rows']:>8} {accuracy:>8.1%}"
        f" {metrics.get('eval_rewards/margins', float('nan')):>7.3f} {losses:>15} {time.monotonic() - began:>6.0f}"
    )


if __name__ == "__main__":
    main()
