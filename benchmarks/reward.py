"""Reward models, tunekit against TRL's RewardTrainer: pairs per second and peak memory, same work.

Both train a head on SmolLM2-135M-Instruct, through LoRA and in full for the head, on the same pairs of a ShareGPT
preference file, with the same chat template, seed, order and optimizer, gradient checkpointing off, checkpoints off.
Pairs that do not fit the length limit are left out, as TRL does. The contenders run in turn, each in a process of its
own; measured is ``trainer.train()``.

    python benchmarks/reward.py dpo_en_demo.json [--rows 32] [--rounds 2] [--threads 2] [--max-length 512]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import _children

CONTENDERS = ("trl", "tunekit")
CLASSIFIER = "AutoModelForSequenceClassification"
BATCH, RANK, RATE, SEED = 4, 8, 1e-4, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a preference file, such as LLaMA-Factory's dpo_en_demo.json")
    parser.add_argument("--rows", type=int, default=32, help="pairs")
    parser.add_argument("--max-length", type=int, default=512)
    _children.add_arguments(parser)
    parser.add_argument("--model", help="folder of another model")
    _children.start(parser.parse_args(), _compare, _child)


def _compare(arguments: argparse.Namespace) -> None:
    facts = _children.run(arguments, "prepare")
    print(f"{facts['pairs']} pairs, {facts['tokens']:.0f} tokens a pair, {facts['shared']:.0%} of them shared")
    best = _children.fastest(
        _children.in_turn(
            CONTENDERS,
            arguments.rounds,
            lambda name: _children.run(arguments, name),
            lambda name, made: f"  {name}: {facts['pairs'] / made['seconds']:.3f} pairs/s, {made['seconds']:.1f} s",
        )
    )
    ours, theirs = best["tunekit"], best["trl"]
    print(
        f"tunekit / trl: {theirs['seconds'] / ours['seconds']:.2f} times the pairs/s, "
        f"{ours['memory'] / theirs['memory']:.2f} times the peak memory ({ours['memory'] / 2**30:.2f} and "
        f"{theirs['memory'] / 2**30:.2f} GB); largest difference of a step's loss {_children.apart(ours, theirs):.1e}"
    )


def _child(arguments: argparse.Namespace) -> _children.Result:
    if arguments.child == "prepare":
        return _prepare(arguments)
    rows = json.loads((arguments.folder / "rows.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        run = _tunekit if arguments.child == "tunekit" else _trl
        return run(arguments, rows, Path(folder))


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a model with a head as a folder, and the first pairs that fit."""
    from tunekit_trl.reward_head import give_padding, with_reward_head

    loaded = _children.resolved(arguments.model)
    tokenizer = loaded.tokenizer
    model, _ = with_reward_head(loaded.model, SEED)
    give_padding(model, tokenizer, {tokenizer.eos_token_id})
    _children.keep(model, tokenizer, arguments.folder)
    rows: list[dict[str, Any]] = []
    tokens = shared = 0
    for prompt, sides in _children.preferences(arguments.data):
        texts = [tokenizer.apply_chat_template([*prompt, *side], tokenize=False) for side in sides]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        if max(map(len, ids)) <= arguments.max_length and ids[0] != ids[1]:
            rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
            tokens += sum(map(len, ids))
            shared += next(n for n, (one, two) in enumerate(zip(*ids, strict=False)) if one != two)
        if len(rows) == arguments.rows:
            break
    (arguments.folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"pairs": len(rows), "tokens": tokens / len(rows), "shared": shared / tokens}


def _trl(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> _children.Result:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    model, tokenizer = _children.load(arguments.folder, CLASSIFIER)
    trainer = RewardTrainer(
        model,
        args=RewardConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            max_length=arguments.max_length,
            seed=SEED,
            data_seed=SEED,
            **_children.PLAIN,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", modules_to_save=["score"]),
    )
    return _children.trained(trainer)


def _tunekit(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> _children.Result:
    from tunekit import Pipeline
    from tunekit.plugins import hf

    made = _children.watch_training(hf.CompletionTrainer)
    (
        Pipeline(model=_children.load(arguments.folder, CLASSIFIER))
        .reward(
            data=rows,
            epochs=1.0,
            learning_rate=RATE,
            max_length=arguments.max_length,
            batch_size=BATCH,
            checkpoint_every=10**6,
        )
        .lora(r=RANK, alpha=16, dropout=0.0, targets="all-linear")
        .run(workdir=folder, seed=SEED)
    )
    return made


if __name__ == "__main__":
    main()
