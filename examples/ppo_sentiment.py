"""PPO on real input: a tiny story teller learns to tell happier stories, on a CPU.

    python examples/ppo_sentiment.py --model data/stories260k/hf --sst2 data/sst2/train.tsv

A reward model is trained on the sentences of SST-2 (sentence, tab, 0 or 1), then the story teller writes beginnings of
stories, is scored by it, and learns. The mean reward should rise by a standard deviation of the scores that the
untrained model gets, while the KL divergence stays below its bound. Two minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tunekit import Pipeline

HEROES = ("Lily", "Tom", "Ben", "Anna", "a dog", "a bird", "Sam", "a little cat")
OPENINGS = ("Once upon a time, {} was", "One day, {} went", "{} had a", "{} and Mum saw")


def main() -> None:
    """Train both models and print how the rollouts went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of stories260k")
    parser.add_argument("--sst2", required=True, help="train.tsv of SST-2")
    parser.add_argument("--workdir", default="runs/ppo-sentiment")
    parser.add_argument("--rollouts", type=int, default=24)
    parser.add_argument("--rows", type=int, default=3000)
    arguments = parser.parse_args()
    lines = Path(arguments.sst2).read_text(encoding="utf-8").splitlines()[: arguments.rows]
    sentences = [line.rpartition("\t") for line in lines if "\t" in line]
    scored = [{"text": text, "score": float(label)} for text, _, label in sentences]
    prompts = [{"prompt": opening.format(hero)} for opening in OPENINGS for hero in HEROES]
    target, bound = 12.0, 15.0
    result = (
        Pipeline(model=arguments.model)
        .reward(data=scored, epochs=2, batch_size=16, learning_rate=1e-3, max_length=96, validation=0.1)
        .align(
            method="ppo",
            prompts=prompts,
            rollout_size=64,
            batch_size=32,
            gradient_accumulation=1,
            ppo_epochs=4,
            max_steps=8 * arguments.rollouts,
            max_new_tokens=24,
            max_length=96,
            learning_rate=3e-4,
            value_coef=0.5,
            kl_coef=0.15,
            kl_target=target,
            kl_horizon=640,
            stop_kl=bound,
            scale_scores=True,
        )
        .run(workdir=arguments.workdir, seed=0)
    )
    step = result.step("align")
    rollouts = [row for row in step.history if "reward" in row]
    for row in rollouts:
        said = f"step {row['step']:4.0f}  reward {row['reward']:7.3f}  kl {row['kl']:6.2f}"
        print(f"{said}  length {row['completion_length']:.1f}")
    rise = (sum(row["reward"] for row in rollouts[-3:]) / 3 - rollouts[0]["reward"]) / rollouts[0]["reward_std"]
    print(f"rise of the mean reward: {rise:.2f} standard deviations of the first rollout's scores")
    print(f"KL divergence at the end: {step.artifact.metrics['kl_final']:.2f} nats per completion, bound {bound:g}")
    print(f"largest on the way: {max(row['kl'] for row in rollouts):.2f}, target {target:g}")


if __name__ == "__main__":
    main()
