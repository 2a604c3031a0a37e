"""RLHF in one line: supervised fine-tuning, a reward model from pairs, and PPO against it.

    python examples/rlhf.py --model MODEL --sft SFT.jsonl --pairs PAIRS.jsonl --prompts PROMPTS.jsonl

With --rounds 3 the last step is DPO in rounds in place of PPO: each round is compared with the one before on held-out
prompts, and kept or rolled back.

The reward of the last step is the model of the reward step before it, and its start is the fine-tuned model. The report
in the work folder shows what the model wrote before and after, how often the reward model prefers the new text, and how
far the model went from its start.
"""

from __future__ import annotations

import argparse
from typing import Any

from tunekit import Pipeline


def main() -> None:
    """Train the three models and print what the last step measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id of a causal model")
    parser.add_argument("--sft", required=True, help="prompts with completions, or conversations")
    parser.add_argument("--pairs", required=True, help="prompts with a chosen and a rejected completion")
    parser.add_argument("--prompts", required=True, help="prompts for PPO, or for the rounds")
    parser.add_argument("--workdir", default="runs/rlhf")
    parser.add_argument("--steps", type=int, default=64, help="optimizer steps of PPO")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of DPO, in place of PPO")
    parser.add_argument("--learning-rate", type=float, default=None, help="of the last step")
    given = parser.parse_args()
    how: dict[str, Any] = {"method": "ppo", "max_steps": given.steps}
    if given.rounds:
        how = {"method": "iterative-dpo", "rounds": given.rounds}
    how |= {} if given.learning_rate is None else {"learning_rate": given.learning_rate}
    result = (
        Pipeline(model=given.model)
        .sft(data=given.sft, epochs=1)
        .reward(data=given.pairs, epochs=1)
        .align(prompts=given.prompts, max_new_tokens=64, **how)
        .run(workdir=given.workdir, seed=0)
    )
    details = result.step("align").artifact.details
    for one in details.get("rounds", ()):
        rate = f"win rate {one['win_rate']['value']:.1%}" if "win_rate" in one else one["problem"]
        print(f"round {one['round']}: {one['pairs']} pairs, {rate}, {'kept' if one['kept'] else 'rolled back'}")
    won, far = details.get("win_rate"), details.get("kl_to_start")
    if won:
        print(f"win rate {won['value']:.1%} over {won['n']} prompts")
        print(f"reward {won['reward_before']:.3f} -> {won['reward_after']:.3f}")
    if far and "per_token" in far:
        print(f"KL to the start: {far['per_token']:.4f} nats a token, {far['per_sequence']:.3f} a completion")


if __name__ == "__main__":
    main()
