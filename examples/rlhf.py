"""RLHF in one line: supervised fine-tuning, a reward model from pairs, and PPO against it.

    python examples/rlhf.py --model MODEL --sft SFT.jsonl --pairs PAIRS.jsonl --prompts PROMPTS.jsonl

The reward of the last step is the model of the reward step before it, and its start is the fine-tuned model. The report
in the work folder shows what the model wrote before and after, how often the reward model prefers the new text, and how
far the model went from its start.
"""

from __future__ import annotations

import argparse

from tunekit import Pipeline


def main() -> None:
    """Train the three models and print what the last step measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id of a causal model")
    parser.add_argument("--sft", required=True, help="prompts with completions, or conversations")
    parser.add_argument("--pairs", required=True, help="prompts with a chosen and a rejected completion")
    parser.add_argument("--prompts", required=True, help="prompts for PPO")
    parser.add_argument("--workdir", default="runs/rlhf")
    parser.add_argument("--steps", type=int, default=64)
    given = parser.parse_args()
    result = (
        Pipeline(model=given.model)
        .sft(data=given.sft, epochs=1)
        .reward(data=given.pairs, epochs=1)
        .align(method="ppo", prompts=given.prompts, max_steps=given.steps)
        .run(workdir=given.workdir, seed=0)
    )
    details = result.step("align").artifact.details
    won, far = details.get("win_rate"), details.get("kl_to_start")
    if won:
        print(f"win rate {won['value']:.1%} over {won['n']} prompts")
        print(f"reward {won['reward_before']:.3f} -> {won['reward_after']:.3f}")
    if far and "per_token" in far:
        print(f"KL to the start: {far['per_token']:.4f} nats a token, {far['per_sequence']:.3f} a completion")


if __name__ == "__main__":
    main()
