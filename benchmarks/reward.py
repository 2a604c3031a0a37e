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
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTENDERS = ("trl", "tunekit")
BATCH, RANK, RATE, SEED = 4, 8, 1e-4, 0
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
)
"""For a model without one."""
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a preference file, such as LLaMA-Factory's dpo_en_demo.json")
    parser.add_argument("--rows", type=int, default=32, help="pairs")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2, help="how often each contender runs; the fastest run counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", help="folder of another model")
    parser.add_argument("--child", choices=(*CONTENDERS, "prepare"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_child(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        facts = _run(arguments, "prepare")
        print(f"{facts['pairs']} pairs, {facts['tokens']:.0f} tokens a pair, {facts['shared']:.0%} of them shared")
        best: dict[str, dict[str, Any]] = {}
        for _ in range(arguments.rounds):
            for name in CONTENDERS:
                made = _run(arguments, name)
                print(f"  {name}: {facts['pairs'] / made['seconds']:.3f} pairs/s, {made['seconds']:.1f} s")
                if name not in best or made["seconds"] < best[name]["seconds"]:
                    best[name] = made
    ours, theirs = best["tunekit"], best["trl"]
    apart = max(abs(one - other) for one, other in zip(ours["losses"], theirs["losses"], strict=True))
    print(
        f"tunekit / trl: {theirs['seconds'] / ours['seconds']:.2f} times the pairs/s, "
        f"{ours['memory'] / theirs['memory']:.2f} times the peak memory ({ours['memory'] / 2**30:.2f} and "
        f"{theirs['memory'] / 2**30:.2f} GB); largest difference of a step's loss {apart:.1e}"
    )


def _run(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, str(arguments.data), "--child", name, "--threads", str(arguments.threads)]
    command += ["--folder", str(arguments.folder), "--rows", str(arguments.rows)]
    command += ["--max-length", str(arguments.max_length)]
    command += ["--model", arguments.model] if arguments.model else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def _child(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.child == "prepare":
        return _prepare(arguments)
    rows = json.loads((arguments.folder / "rows.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        return (_tunekit if arguments.child == "tunekit" else _trl)(arguments, rows, Path(folder))


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a model with a head as a folder, and the first pairs that fit."""
    from tunekit import Session
    from tunekit_trl.reward_head import give_padding, with_reward_head

    loaded = Session().resolve_model(arguments.model or "smollm2-135m-instruct").load()
    tokenizer = loaded.tokenizer
    if not tokenizer.chat_template:
        tokenizer.chat_template = TEMPLATE
    model, _ = with_reward_head(loaded.model, SEED)
    give_padding(model, tokenizer, {tokenizer.eos_token_id})
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    rows: list[dict[str, Any]] = []
    tokens = shared = 0
    for row in json.loads(arguments.data.read_text(encoding="utf-8")):
        prompt = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        sides = [[{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")]
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


def _model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def _trl(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    model, tokenizer = _model(arguments.folder)
    trainer = RewardTrainer(
        model,
        args=RewardConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            max_length=arguments.max_length,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=SEED,
            data_seed=SEED,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", modules_to_save=["score"]),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": seconds, "losses": losses, "memory": _memory()}


def _tunekit(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from tunekit import Pipeline
    from tunekit.plugins import hf

    counts: dict[str, Any] = {}
    train = hf.CompletionTrainer.train

    def timed(self: Any, *more: Any, **named: Any) -> Any:
        began = time.perf_counter()
        output = train(self, *more, **named)
        counts["seconds"] = time.perf_counter() - began
        counts["memory"] = _memory()
        counts["losses"] = [row["loss"] for row in self.state.log_history if "loss" in row]
        return output

    setattr(hf.CompletionTrainer, "train", timed)  # noqa: B010  (a benchmark measures from outside)
    (
        Pipeline(model=_model(arguments.folder))
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
    return counts


if __name__ == "__main__":
    main()
