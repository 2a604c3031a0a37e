"""Runs a small chain with the real trainers; dies where the environment says. For tests of resume.

python line_driver.py WORKDIR [--die-at STEP]
"""

from __future__ import annotations

import os
import signal
import sys

from tunekit import Pipeline, lora
from tunekit.events import Event, MetricLogged

PRETRAIN = {
    "max_steps": 3,
    "limit": 12,
    "hidden_size": 32,
    "layers": 2,
    "vocab_size": 400,
    "batch_size": 2,
    "context": 512,
    "max_length": 64,
}


def chain() -> Pipeline:
    return (
        Pipeline()
        .pretrain(**PRETRAIN)
        .sft(
            limit=24,
            max_steps=12,
            batch_size=2,
            gradient_accumulation=2,
            max_length=96,
            checkpoint_every=2,
            keep_checkpoints=3,
            learning_rate=5e-3,
            adapter=lora(r=4, dropout=0.1),
        )
        .evaluate(["mmlu"], limit=8, num_fewshot=0)
    )


def main() -> None:
    die_at = int(sys.argv[3]) if len(sys.argv) > 3 else None

    def observe(event: Event) -> None:
        if isinstance(event, MetricLogged) and event.step == "sft" and event.global_step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    result = chain().run(workdir=sys.argv[1], on_event=observe)
    print(" ".join(step.name for step in result.steps if not step.reused))
    for notice in result.notices:
        print("notice:", notice)


if __name__ == "__main__":
    main()
