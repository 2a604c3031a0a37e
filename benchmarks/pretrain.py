"""Pretraining, tunekit against the plain transformers Trainer: tokens per second, peak memory, and the loss curve.

Both start from the same random weights of a Llama-like model and train on the same blocks in the same order, with the
same hyperparameters, in full. They run in turn, each in a process of its own. What is timed are the optimizer steps
from the second to the last; no checkpoint falls in between.

    python benchmarks/pretrain.py wikitext-2/valid.txt [--size 10M] [--steps 20] [--rounds 2] [--threads 2]

Two kinds of blocks: ``documents``, several in a block, none of which sees another (the plain Trainer is given
``position_ids``, from which transformers makes its own mask), and ``stream``, one text cut into blocks, where there is
nothing to keep apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import _children

CONTENDERS = ("plain", "tunekit")
KINDS = ("documents", "stream")
RATE, DECAY, CLIP, WARMUP, SEED = 1e-3, 0.1, 1.0, 2, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a text file of about a megabyte, such as wikitext-2's valid.txt")
    parser.add_argument("--size", default="10M", help="parameters of the model")
    parser.add_argument("--length", type=int, default=512, help="tokens in a block")
    parser.add_argument("--batch", type=int, default=8, help="blocks of an optimizer step")
    parser.add_argument("--steps", type=int, default=20)
    _children.add_arguments(parser)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--profile", action="store_true", help="where the time goes, of both")
    _children.start(parser.parse_args(), _compare, _child)


def _compare(arguments: argparse.Namespace) -> None:
    facts = _children.run(arguments, "prepare", "--kinds", KINDS[0])
    print(
        f"{facts['parameters']:,} parameters, vocabulary {facts['vocabulary']:,}, {arguments.batch} blocks of "
        f"{arguments.length} tokens, {arguments.steps} steps, {arguments.threads} threads, "
        f"matrix products {facts['peak'] / 1e9:.0f} GFLOP/s"
    )
    for kind in arguments.kinds:
        best = _children.fastest(
            _children.in_turn(
                CONTENDERS,
                arguments.rounds,
                lambda name, kind=kind: _children.run(arguments, name, "--kinds", kind),
                lambda name, made, kind=kind: f"  {kind}, {name}: {made['tokens'] / made['seconds']:.0f} tokens/s",
            )
        )
        plain, own = best["plain"], best["tunekit"]
        apart = _children.apart(plain, own)
        print(f"\n{kind:<10} tokens/s  share of peak  peak memory")
        for name, run in best.items():
            share = run["flops"] / run["seconds"] / facts["peak"]
            print(f"{name:<10} {run['tokens'] / run['seconds']:>8.0f} {share:>14.0%} {run['memory'] / 2**30:>9.2f} GB")
        print(
            f"tunekit / plain: {plain['seconds'] / own['seconds']:.2f} times the tokens/s, "
            f"{own['memory'] / plain['memory']:.2f} times the peak memory"
        )
        print(f"loss {own['losses'][0]:.4f} -> {own['losses'][-1]:.4f}, largest difference of a step {apart:.1e}\n")
        if apart > 1e-3:
            raise SystemExit("the loss curves differ")


def _texts(arguments: argparse.Namespace) -> list[str]:
    """Passages that blank lines part, or everything as one text."""
    text = arguments.data.read_text(encoding="utf-8")
    if arguments.kinds == ["stream"]:
        return [text]
    return [part.strip() for part in text.split("\n\n") if part.strip()] if "\n\n" in text else text.splitlines()


def _child(arguments: argparse.Namespace) -> _children.Result:
    from tunekit.plugins import hf

    if arguments.child == "prepare":
        return _prepare(arguments)
    model, tokenizer = _children.load(arguments.folder)
    texts = [text for text in _texts(arguments) if text.strip()]
    with tempfile.TemporaryDirectory() as folder:
        trainer, made = (_plain if arguments.child == "plain" else _tunekit)(
            arguments, model, tokenizer, texts, Path(folder)
        )
    steps = arguments.steps - 1
    tokens = steps * arguments.batch * arguments.length
    mean = arguments.length if len(texts) == 1 else min(arguments.length, tokens_per_document(tokenizer, texts))
    return {
        **made,
        "tokens": tokens,
        "flops": tokens * hf.flops_per_token(trainer.model, mean),
        "losses": _children.losses(trainer),
    }


def tokens_per_document(tokenizer: Any, texts: list[str]) -> float:
    """Tokens of the document a token is in, on average over tokens."""
    lengths = [len(ids) for ids in tokenizer(texts[:500])["input_ids"]]
    return sum(length**2 for length in lengths) / sum(lengths)


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from tunekit.plugins import hf
    from tunekit_transformers.options import PretrainOptions
    from tunekit_transformers.scratch import new_model
    from tunekit_transformers.tokenizer import train_tokenizer

    options = PretrainOptions(size=arguments.size).resolve(adapter=None)
    texts = _texts(arguments)
    tokenizer = train_tokenizer(texts, options.vocab_size, options.context)
    model = new_model(options, tokenizer, SEED, masked=False)
    _children.keep(model, tokenizer, arguments.folder)
    peak = max(hf.measured_peak(torch.device("cpu"), torch.float32) for _ in range(3))
    return {"parameters": hf.count_parameters(model)[0], "vocabulary": len(tokenizer), "peak": peak}


class Timer:
    """Times the steps of a trainer's loop, from the end of the first to the end of the last."""

    def __init__(self, profiled: bool) -> None:
        self.ends: list[float] = []
        self.memory = 0
        self.table: _children.Result = {}
        self.profiled = profiled

    def around(self, loop: Any) -> Any:
        from transformers import TrainerCallback

        timer = self

        class Clock(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                timer.ends.append(time.perf_counter())
                timer.memory = _children.memory()

        def timed(trainer: Any, *more: Any, **named: Any) -> Any:
            trainer.add_callback(Clock())
            with _children.profiled(timer.profiled) as found:
                output = loop(trainer, *more, **named)
            timer.table = _children.table(found)
            return output

        return timed

    def facts(self) -> dict[str, Any]:
        return {"seconds": self.ends[-1] - self.ends[0], "memory": self.memory, **self.table}


def _plain(
    arguments: argparse.Namespace, model: Any, tokenizer: Any, texts: list[str], folder: Path
) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import Trainer, TrainingArguments

    ids: list[int] = []
    positions: list[int] = []
    for made in tokenizer(texts)["input_ids"]:
        ids += [*made, tokenizer.eos_token_id]
        positions += range(len(made) + 1)
    rows = []
    # Neighbouring blocks share a token, so that each token is a target once; positions begin anew in each block.
    for begin in range(0, len(ids) - 1, arguments.length - 1):
        part = positions[begin : begin + arguments.length]
        first = next((at for at, position in enumerate(part) if position == 0), len(part))
        part[:first] = range(first)
        block = ids[begin : begin + arguments.length]
        row = {"input_ids": block, "labels": [-100 if at == 0 else id for id, at in zip(block, part, strict=True)]}
        rows.append(row if len(texts) == 1 else {**row, "position_ids": part})

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        longest = max(len(row["labels"]) for row in batch)  # the last block of all may be shorter
        filler = {"input_ids": [0] * longest, "labels": [-100] * longest, "position_ids": list(range(longest))}
        return {
            name: torch.tensor([row[name] + filler[name][: longest - len(row[name])] for row in batch])
            for name in batch[0]
        }

    timer = Timer(arguments.profile)
    Trainer._inner_training_loop = timer.around(Trainer._inner_training_loop)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=arguments.batch,
            max_steps=arguments.steps,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=WARMUP,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            seed=SEED,
            data_seed=SEED,
            **_children.PLAIN,
        ),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.train()
    return trainer, timer.facts()


def _tunekit(
    arguments: argparse.Namespace, model: Any, tokenizer: Any, texts: list[str], folder: Path
) -> tuple[Any, dict[str, Any]]:
    from tunekit import Pipeline
    from tunekit.plugins import hf

    timer = Timer(arguments.profile)
    seen: list[Any] = []
    loop = timer.around(hf.TokenTrainer._inner_training_loop)

    def kept(trainer: Any, *more: Any, **named: Any) -> Any:
        seen.append(trainer)
        return loop(trainer, *more, **named)

    hf.TokenTrainer._inner_training_loop = kept
    Pipeline(model=(model, tokenizer)).post_pretrain(
        [{"text": text} for text in texts],
        max_steps=arguments.steps,
        max_length=arguments.length,
        batch_size=arguments.batch,
        learning_rate=RATE,
        schedule="cosine",
        warmup=WARMUP,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        seed=SEED,
        checkpoint_every=10**6,
    ).run(workdir=folder)
    return seen[0], timer.facts()


if __name__ == "__main__":
    main()
