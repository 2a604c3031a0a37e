"""What the benchmarks share: contenders that run in turn, each in a process of its own, and what is measured there.

A script gives :func:`start` two functions: one that compares, in the process that was started by hand, and one that
does the work of one child and returns numbers. :func:`run` starts a child with the same command line.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""What a child found out: seconds, bytes of memory, losses ..."""

PLAIN: dict[str, Any] = {
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
"""Arguments of a trainer that it is compared with: nothing that costs time besides the training."""
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For a model without one."""
_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


class ChildFailed(SystemExit):
    """A child ended with an error; the message has the end of what it wrote."""


# ---------------------------------------------------------------- the processes


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int = 2) -> None:
    """The options that all scripts have."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="how often each contender runs; the fastest run counts"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


def start(
    arguments: argparse.Namespace,
    compare: Callable[[argparse.Namespace], None],
    child: Callable[[argparse.Namespace], Result],
) -> None:
    """Compare, with ``arguments.folder`` for what the children share; or, in a child, work and print what came out."""
    if not arguments.child:
        with tempfile.TemporaryDirectory() as folder:
            arguments.folder = Path(folder)
            compare(arguments)
        return
    import torch

    torch.set_num_threads(arguments.threads)
    made = child(arguments)
    assert torch.get_num_threads() == arguments.threads
    print(json.dumps(made))


def run(arguments: argparse.Namespace, name: str, *more: str) -> Result:
    """What the child of this name finds out. It is given the command line of this process, and ``more`` behind it.

    Raises:
        ChildFailed: if it ends with an error.
    """
    command = [sys.executable, *sys.argv, "--threads", str(arguments.threads)]
    command += ["--folder", str(arguments.folder), "--child", name, *more]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildFailed(f"{name} failed:\n{done.stderr[-3000:] or f'exit code {done.returncode}'}")
    made: Result = json.loads(done.stdout.splitlines()[-1])
    if "profile" in made:
        print(made.pop("profile"))
    return made


def in_turn(
    names: Sequence[str],
    rounds: int,
    work: Callable[[str], Result | None],
    line: Callable[[str, Result], str],
    *,
    there_and_back: bool = False,
) -> dict[str, list[Result]]:
    """Results of each contender, one per round; a line is printed for each. None: it does not run here.

    Args:
        names: the contenders.
        rounds: how often each works.
        work: gives the result of one.
        line: says it.
        there_and_back: every other round is the other way around.
    """
    found: dict[str, list[Result]] = {name: [] for name in names}
    for number in range(rounds):
        for name in reversed(names) if there_and_back and number % 2 else names:
            made = work(name)
            if made is not None:
                found[name].append(made)
                print(line(name, made), flush=True)
    return {name: runs for name, runs in found.items() if runs}


def fastest(found: dict[str, list[Result]], per: str | None = None) -> dict[str, Result]:
    """The run of each contender with the fewest seconds; ``per``: seconds for one of these."""
    return {
        name: min(runs, key=lambda made: made["seconds"] / (made[per] if per else 1)) for name, runs in found.items()
    }


def apart(one: Result, other: Result) -> float:
    """Largest difference of a step's loss."""
    return max(abs(here - there) for here, there in zip(one["losses"], other["losses"], strict=True))


# ---------------------------------------------------------------- within a child


def memory() -> int:
    """Bytes that this process has used at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def with_memory(made: Result) -> Result:
    """The result with the peak of the whole process, and with that of the training above what was there ``before``."""
    before = made.pop("before")
    return {**made, "whole": memory(), "above": made["memory"] - before}


def profiled(wanted: bool) -> AbstractContextManager[Any]:
    """A profile of what happens inside, or None; :func:`table` prints it."""
    from torch.profiler import profile

    return profile() if wanted else nullcontext()


def table(profile: Any) -> Result:
    """Where the time went, for a result; empty without a profile."""
    return (
        {}
        if profile is None
        else {"profile": profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)}
    )


def trained(trainer: Any) -> Result:
    """Train; seconds of ``trainer.train()``, peak memory as it returns, and the loss of each step."""
    began = time.perf_counter()
    trainer.train()
    return {"seconds": time.perf_counter() - began, "memory": memory(), "losses": losses(trainer)}


def losses(trainer: Any) -> list[float]:
    """The loss of each optimizer step."""
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def watch_training(
    kind: Any,
    *,
    profile: bool = False,
    around: Callable[[Any], AbstractContextManager[Any]] = lambda trainer: nullcontext(),
    facts: Callable[[Any], Result] = lambda trainer: {},
) -> Result:
    """Measure ``kind.train`` from outside, as :func:`trained` does; what it finds is in the result once it ran.

    Args:
        kind: class of the trainer.
        profile: where the time goes, as well.
        around: what the training happens in; it is given the trainer.
        facts: further numbers of the trainer that has trained.
    """
    found: Result = {}
    train = kind.train

    def timed(self: Any, *more: Any, **named: Any) -> Any:
        with around(self):
            began = time.perf_counter()
            with profiled(profile) as seen:
                output = train(self, *more, **named)
            found["seconds"] = time.perf_counter() - began
            found["memory"] = memory()
        found.update(losses=losses(self), **table(seen), **facts(self))
        return output

    kind.train = timed
    return found


# ---------------------------------------------------------------- models and data


def keep(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write plain files for the children: to unpack weights takes memory of its own."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def resolved(name: str | None) -> Any:
    """The model of this folder or name, SmolLM2-135M-Instruct without one; its tokenizer has a chat template."""
    from tunekit import Session

    found = Session().resolve_model(name or "smollm2-135m-instruct").load()
    if not found.tokenizer.chat_template:
        found.tokenizer.chat_template = TEMPLATE
    return found


def load(folder: Path | str, kind: str = "AutoModelForCausalLM") -> tuple[Any, Any]:
    """Model in float32 and tokenizer from plain files."""
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


Messages = list[dict[str, str]]


def preferences(path: Path) -> Iterator[tuple[Messages, list[Messages]]]:
    """Prompt, and the chosen and the rejected answer, of each row of a ShareGPT preference file."""
    for row in json.loads(path.read_text(encoding="utf-8")):
        prompt = [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        yield prompt, [[{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")]
