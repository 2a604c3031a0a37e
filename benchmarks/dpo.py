"""Direct preference optimisation, tunekit against TRL's DPOTrainer: pairs per second and peak memory, same work.

Both train SmolLM2-135M-Instruct through LoRA on the same pairs of a ShareGPT preference file, with the same chat
template, limits, seed, order and optimizer, gradient checkpointing off, checkpoints off. They run in turn, each in a
process of its own. The time of TRL is that of ``trainer.train()``, in which it runs the reference with each batch; the
time of tunekit is that of the reference pass and of ``trainer.train()``. Peak memory is read as that returns; the peak
of the whole process, with whatever a step does after training, is given beside it.

    python benchmarks/dpo.py dpo_en_demo.json [--rows 32] [--epochs 1] [--rounds 2] [--threads 2] [--profile]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import _children

CONTENDERS = ("trl", "tunekit")
BETA, BATCH, RANK, RATE, SEED = 0.1, 4, 8, 5e-6, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a preference file, such as LLaMA-Factory's dpo_en_demo.json")
    parser.add_argument("--rows", type=int, default=32, help="pairs")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="optimizer steps in place of epochs")
    parser.add_argument("--max-length", type=int, default=512)
    _children.add_arguments(parser)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--profile", action="store_true", help="where tunekit's time goes")
    parser.add_argument("--model", help="folder of another model")
    _children.start(parser.parse_args(), _compare, _child)


def _compare(arguments: argparse.Namespace) -> None:
    facts = _children.run(arguments, "prepare")
    print(f"{facts['pairs']} pairs, prompts {facts['prompt']:.0f} and answers {facts['answer']:.0f} tokens on average")
    _report(
        _children.in_turn(
            arguments.only,
            arguments.rounds,
            lambda name: _children.run(arguments, name),
            lambda name, made: f"  {name}: {made['pairs'] / made['seconds']:.3f} pairs/s, {made['seconds']:.1f} s",
        )
    )


def _report(results: dict[str, list[_children.Result]]) -> None:
    best = _children.fastest(results, per="pairs")
    print()
    print("contender     pairs/s  median  reference  peak memory  above the model  whole process")
    for name, run in best.items():
        middle = median(each["pairs"] / each["seconds"] for each in results[name])
        print(
            f"{name:<10} {run['pairs'] / run['seconds']:>10.3f} {middle:>7.3f} {run['reference']:>8.1f} s"
            f" {run['memory'] / 2**30:>9.2f} GB {run['above'] / 2**30:>13.2f} GB {run['whole'] / 2**30:>11.2f} GB"
        )
    print()
    if len(best) == len(CONTENDERS):
        ours, theirs = best["tunekit"], best["trl"]
        speed = (ours["pairs"] / ours["seconds"]) / (theirs["pairs"] / theirs["seconds"])
        print(f"tunekit / trl: {speed:.2f} times the pairs/s, {ours['memory'] / theirs['memory']:.2f} times the memory")
        print(f"largest difference of a step's loss: {_children.apart(ours, theirs):.1e}")
    for name, run in best.items():
        print(f"loss per step, {name}: {' '.join(f'{loss:.4f}' for loss in run['losses'])}")


def _child(arguments: argparse.Namespace) -> _children.Result:
    if arguments.child == "prepare":
        return _prepare(arguments)
    rows = json.loads((arguments.folder / "rows.json").read_text(encoding="utf-8"))
    run = _tunekit if arguments.child == "tunekit" else _trl
    with tempfile.TemporaryDirectory() as folder:
        return _children.with_memory(run(arguments, rows, Path(folder)))


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the model as a folder, and the first pairs of which something is left to learn after the cut."""
    loaded = _children.resolved(arguments.model)
    _children.keep(loaded.model, loaded.tokenizer, arguments.folder)

    def ids(messages: list[dict[str, str]], **more: Any) -> list[int]:
        text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, **more)
        found: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    rows: list[dict[str, Any]] = []
    prompts = answers = 0
    for prompt, sides in _children.preferences(arguments.data):
        begin = len(ids(prompt, add_generation_prompt=True))
        made = [ids([*prompt, *side])[: arguments.max_length] for side in sides]
        if begin < arguments.max_length and made[0] != made[1]:
            rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
            prompts += begin
            answers += sum(map(len, made)) - 2 * begin
        if len(rows) == arguments.rows:
            break
    (arguments.folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"pairs": len(rows), "prompt": prompts / len(rows), "answer": answers / len(rows) / 2}


def _trl(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> _children.Result:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = _children.load(arguments.folder)
    before = _children.memory()
    trainer = DPOTrainer(
        model,
        args=DPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            num_train_epochs=arguments.epochs,
            max_steps=arguments.steps or -1,
            learning_rate=RATE,
            beta=BETA,
            max_length=arguments.max_length,
            seed=SEED,
            data_seed=SEED,
            **_children.PLAIN,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
    )
    made = _children.trained(trainer)
    pairs = round(float(trainer.state.epoch or 0) * len(rows))
    return {**made, "reference": 0.0, "pairs": pairs, "before": before}


def _tunekit(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> _children.Result:
    from tunekit import Pipeline
    from tunekit.plugins import hf
    from tunekit_trl import alignment

    model, tokenizer = _children.load(arguments.folder)
    before = _children.memory()
    counts: dict[str, float] = {}
    reference = alignment.reference_logps

    def timed_reference(*positional: Any) -> Any:
        began = time.perf_counter()
        found = reference(*positional)
        counts["reference"] = time.perf_counter() - began
        return found

    made = _children.watch_training(
        hf.CompletionTrainer,
        profile=arguments.profile,
        facts=lambda trainer: {"pairs": round(float(trainer.state.epoch or 0) * len(rows))},
    )
    setattr(alignment, "reference_logps", timed_reference)  # noqa: B010  (a benchmark measures from outside)
    length: dict[str, Any] = {"max_steps": arguments.steps} if arguments.steps else {"epochs": arguments.epochs}
    (
        Pipeline(model=(model, tokenizer))
        .align(
            method="dpo",
            data=rows,
            beta=BETA,
            learning_rate=RATE,
            max_length=arguments.max_length,
            batch_size=BATCH,
            checkpoint_every=10**6,
            **length,
        )
        .lora(r=RANK, alpha=16, dropout=0.0, targets="all-linear")
        .run(workdir=folder, seed=SEED)
    )
    return {**made, **counts, "seconds": made["seconds"] + counts["reference"], "before": before}


if __name__ == "__main__":
    main()
