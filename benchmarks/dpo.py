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
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

CONTENDERS = ("trl", "tunekit")
BETA, BATCH, RANK, RATE, SEED = 0.1, 4, 8, 5e-6, 0
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For a model without one."""
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a preference file, such as LLaMA-Factory's dpo_en_demo.json")
    parser.add_argument("--rows", type=int, default=32, help="pairs")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, help="optimizer steps in place of epochs")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2, help="how often each contender runs; the fastest run counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--profile", action="store_true", help="where tunekit's time goes")
    parser.add_argument("--model", help="folder of another model")
    parser.add_argument("--child", choices=(*CONTENDERS, "prepare"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_child(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    facts = _run(arguments, "prepare", environment)
    print(f"{facts['pairs']} pairs, prompts {facts['prompt']:.0f} and answers {facts['answer']:.0f} tokens on average")
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        for name in arguments.only:
            results.setdefault(name, []).append(_run(arguments, name, environment))
            made = results[name][-1]
            print(f"  {name}: {made['pairs'] / made['seconds']:.3f} pairs/s, {made['seconds']:.1f} s")
    _report(results)


def _run(arguments: argparse.Namespace, name: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, str(arguments.data), "--child", name, "--threads", str(arguments.threads)]
    command += ["--folder", str(arguments.folder), "--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
    command += ["--max-length", str(arguments.max_length)]
    command += ["--model", arguments.model] if arguments.model else []
    command += ["--steps", str(arguments.steps)] if arguments.steps else []
    command += ["--profile"] if arguments.profile and name == "tunekit" else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "profile" in made:
        print(made.pop("profile"))
    return made


def _report(results: dict[str, list[dict[str, Any]]]) -> None:
    best = {name: max(runs, key=lambda run: run["pairs"] / run["seconds"]) for name, runs in results.items()}
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
        apart = max(abs(one - other) for one, other in zip(ours["losses"], theirs["losses"], strict=True))
        print(f"tunekit / trl: {speed:.2f} times the pairs/s, {ours['memory'] / theirs['memory']:.2f} times the memory")
        print(f"largest difference of a step's loss: {apart:.1e}")
    for name, run in best.items():
        print(f"loss per step, {name}: {' '.join(f'{loss:.4f}' for loss in run['losses'])}")


def _child(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.child == "prepare":
        return _prepare(arguments)
    rows = json.loads((arguments.folder / "rows.json").read_text(encoding="utf-8"))
    run = _tunekit if arguments.child == "tunekit" else _trl
    with tempfile.TemporaryDirectory() as folder:
        made = run(arguments, rows, Path(folder))
    assert torch.get_num_threads() == arguments.threads
    made["whole"] = _memory()
    made["above"] = made["memory"] - made.pop("before")
    return made


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the model as a folder, and the first pairs of which something is left to learn after the cut."""
    from tunekit import Session

    loaded = Session().resolve_model(arguments.model or "smollm2-135m-instruct").load()
    if not loaded.tokenizer.chat_template:
        loaded.tokenizer.chat_template = TEMPLATE
    loaded.model.save_pretrained(arguments.folder)
    loaded.tokenizer.save_pretrained(arguments.folder)

    def ids(messages: list[dict[str, str]], **more: Any) -> list[int]:
        text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, **more)
        found: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    rows: list[dict[str, Any]] = []
    prompts = answers = 0
    for row in json.loads(arguments.data.read_text(encoding="utf-8")):
        prompt = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        sides = [[{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")]
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


def _model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def _trl(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = _model(arguments.folder)
    before = _memory()
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
        peft_config=LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    memory = _memory()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    pairs = round(float(trainer.state.epoch or 0) * len(rows))
    return {
        "seconds": seconds,
        "reference": 0.0,
        "pairs": pairs,
        "losses": losses,
        "before": before,
        "memory": memory,
    }


def _tunekit(arguments: argparse.Namespace, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from contextlib import nullcontext

    from torch.profiler import profile

    from tunekit import Pipeline
    from tunekit.plugins import hf
    from tunekit_trl import alignment

    model, tokenizer = _model(arguments.folder)
    before = _memory()
    counts: dict[str, Any] = {}
    train, reference = hf.CompletionTrainer.train, alignment.reference_logps

    def timed_reference(*positional: Any) -> Any:
        began = time.perf_counter()
        found = reference(*positional)
        counts["reference"] = time.perf_counter() - began
        return found

    def timed(self: Any, *more: Any, **named: Any) -> Any:
        began = time.perf_counter()
        with profile() if arguments.profile else nullcontext() as found:
            output = train(self, *more, **named)
        counts["seconds"] = time.perf_counter() - began + counts["reference"]
        counts["memory"] = _memory()
        if found is not None:
            counts["profile"] = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
        counts["losses"] = [row["loss"] for row in self.state.log_history if "loss" in row]
        counts["pairs"] = round(float(self.state.epoch or 0) * len(rows))
        return output

    setattr(hf.CompletionTrainer, "train", timed)  # noqa: B010  (a benchmark measures from outside)
    setattr(alignment, "reference_logps", timed_reference)  # noqa: B010
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
    return {**counts, "before": before}


if __name__ == "__main__":
    main()
