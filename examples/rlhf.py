"""RLHF in one line: supervised fine-tuning, a reward model from pairs, and PPO against it.

    python examples/rlhf.py --model data/stories260k/hf
    python examples/rlhf.py --model MODEL --sft SFT.jsonl --pairs PAIRS.jsonl --prompts PROMPTS.jsonl

Without files it is a toy with a known end, half a minute on one core: of the stories that the model is tuned on, one
in four ends well, and in every pair the one that does is chosen. So the tuned model writes one good end in four, the
reward model learns to tell them apart, and after PPO nearly all of them should be good.

With --rounds 3 the last step is DPO in rounds in place of PPO: each round is compared with the one before on held-out
prompts, and kept or rolled back.

The reward of the last step is the model of the reward step before it, and its start is the fine-tuned model. The report
in the work folder shows what the model wrote before and after, how often the reward model prefers the new text, and how
far the model went from its start.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

from tunekit import Pipeline

HEROES = ("Lily", "Tom", "Ben", "Anna", "Sam", "Mia", "Max", "Sue")
THINGS = ("ball", "hat", "cake", "dog", "book", "toy", "boat", "cup")
GOOD = ("A friend found it. {} was very happy.", "Mom helped to look. {} smiled and played.")
BAD = ("It was gone. {} was very sad.", "It was broken. {} cried and went home.")
GOOD_WORDS = ("happy", "smile")


def toy_data() -> tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]:
    """Stories with an end, pairs of a good and a bad end, and beginnings that are in neither of them."""
    stories, pairs, prompts = [], [], []
    for number, (hero, thing) in enumerate(product(HEROES, THINGS)):
        for verb in ("lost", "looked for"):
            prompt = f"One day, {hero} {verb} a {thing}."
            good, bad = (ends[number // 2 % 2].format(hero) for ends in (GOOD, BAD))
            stories.append({"prompt": prompt, "completion": " " + (good if (number + len(verb)) % 4 == 0 else bad)})
            pairs.append({"prompt": prompt, "chosen": " " + good, "rejected": " " + bad})
        prompts.append({"prompt": f"Then {hero} lost a {thing}."})
    return stories, pairs, prompts


def main() -> None:
    """Train the three models and print what the last step measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a causal model")
    parser.add_argument("--sft", help="prompts with completions, or conversations")
    parser.add_argument("--pairs", help="prompts with a chosen and a rejected completion")
    parser.add_argument("--prompts", help="prompts for PPO, or for the rounds")
    parser.add_argument("--workdir", default="runs/rlhf")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of PPO; default 64, of the toy 96")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of DPO, in place of PPO")
    parser.add_argument("--learning-rate", type=float, default=None, help="of the last step")
    given = parser.parse_args()
    files = (given.sft, given.pairs, given.prompts)
    if any(files) and not all(files):
        parser.error("--sft, --pairs and --prompts belong together; without any of them there is a toy")
    stories, pairs, prompts = files if all(files) else toy_data()
    tuning: dict[str, Any] = {"epochs": 1}
    how: dict[str, Any] = {"method": "ppo", "max_steps": given.steps or 64, "max_new_tokens": 64}
    if not all(files):
        tuning = {"epochs": 4, "batch_size": 16, "gradient_accumulation": 1, "learning_rate": 2e-3, "max_length": 128}
        how |= {"max_new_tokens": 32, "learning_rate": 3e-4, "max_length": 128, "samples": 64, "kl_coef": 0.5}
        how |= {"max_steps": given.steps or 96}
    if given.rounds:
        shared: dict[str, Any] = {
            key: how[key] for key in ("max_new_tokens", "learning_rate", "max_length", "samples") if key in how
        }
        how = {"method": "iterative-dpo", "rounds": given.rounds, **shared}
        how |= {} if all(files) else {"validation": 0.25}
    how |= {} if given.learning_rate is None else {"learning_rate": given.learning_rate}
    result = (
        Pipeline(model=given.model)
        .sft(data=stories, **tuning)
        .reward(data=pairs, **tuning)
        .align(prompts=prompts, **how)
        .run(workdir=given.workdir, seed=0)
    )
    details = result.step("align").artifact.details
    for one in details.get("rounds", ()):
        rate = f"win rate {one['win_rate']['value']:.1%}" if "win_rate" in one else one["problem"]
        print(f"round {one['round']}: {one['pairs']} pairs, {rate}, {'kept' if one['kept'] else 'rolled back'}")
    won, far = details.get("win_rate"), details.get("kl_to_start")
    if won and "value" in won:
        print(f"win rate {won['value']:.1%} over {won['n']} prompts")
        print(f"reward {won['reward_before']:.3f} -> {won['reward_after']:.3f}")
    if far and "per_token" in far:
        print(f"KL to the start: {far['per_token']:.4f} nats a token, {far['per_sequence']:.3f} a completion")
    if not all(files):
        rows = details["samples"]["rows"]
        ends = [sum(any(word in row[when] for word in GOOD_WORDS) for row in rows) for when in ("before", "after")]
        print(f"good ends: {ends[0]} of {len(rows)} before, {ends[1]} after")


if __name__ == "__main__":
    main()
