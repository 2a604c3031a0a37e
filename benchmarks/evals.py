"""Evaluation, tunekit against lm-evaluation-harness: questions per second and peak memory, same rows, same answers.

Both are given the same model in float32 and the same prompts, and run in turn, each in a process of its own. Of the
harness only what costs time is run: ``HFLM.loglikelihood`` and ``HFLM.generate_until``, without its bookkeeping around
them; tunekit is timed with judging and writing of rows. The harness runs with its own batch sizes 1, 8 and ``auto``;
the fastest counts, and so does the fastest of tunekit's rounds. The script fails if an answer differs.

    python benchmarks/evals.py smollm2-135m-instruct --data DATA [--tasks mmlu gsm8k arc] [--rows 60] [--rounds 2]
    python benchmarks/evals.py smollm2-135m-instruct --data DATA --scaling docs/explanation/mmlu-scaling.svg

``--data`` is a folder as ``evaluate(data=...)`` takes it. ``--scaling`` measures MMLU by number of questions and of
examples before each, with tunekit alone, and draws it.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _children

TASKS = ("mmlu", "gsm8k", "arc")
PEERS = ("lm-eval-1", "lm-eval-8", "lm-eval-auto")
ROWS = {"mmlu": 180, "gsm8k": 24, "arc": 100}
SUBJECTS = ("professional_law", "moral_scenarios", "miscellaneous")
"""The three with the most questions: a fifth of all rows of MMLU, and its mean ratio of examples to questions."""
COUNTS, SHOTS = (25, 50, 100), (0, 1, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or a name that tunekit knows")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rows", type=int, help="questions per task; left out: mmlu 180, gsm8k 24, arc 100")
    _children.add_arguments(parser, rounds=1)
    parser.add_argument("--only", nargs="+", choices=("tunekit", *PEERS), default=["tunekit", *PEERS])
    parser.add_argument("--scaling", type=Path, help="write a plot of MMLU's time here")
    _children.start(parser.parse_args(), _compare_all, _child)


def _compare_all(arguments: argparse.Namespace) -> None:
    _children.run(arguments, "prepare")
    if arguments.scaling:
        _draw(_children.run(arguments, "scaling")["seconds"], arguments.scaling)
        return
    for task in arguments.tasks:
        _compare(arguments, task)


def _compare(arguments: argparse.Namespace, task: str) -> None:
    def work(name: str) -> _children.Result | None:
        try:
            return _children.run(arguments, name, "--tasks", task, "--rows", str(arguments.rows or ROWS[task]))
        except _children.ChildFailed as error:
            if name != "lm-eval-auto":
                raise
            # It begins with 64 rows of the model's full length: more memory than many machines have.
            print(f"{task} {name}: does not run here ({error})")
            return None

    def line(name: str, made: _children.Result) -> str:
        return (
            f"{task} {name}: {made['rows'] / made['seconds']:.2f} questions/s, {made['seconds']:.1f} s, "
            f"{made['memory'] / 2**30:.2f} GB, of which {made['loaded'] / 2**30:.2f} GB before the first question"
        )

    best = _children.fastest(_children.in_turn(arguments.only, arguments.rounds, work, line))
    peers = [name for name in best if name != "tunekit"]
    if "tunekit" not in best or not peers:
        return
    own, peer = best["tunekit"], min(peers, key=lambda name: best[name]["seconds"])
    print(
        f"{task}: tunekit / {peer}: {best[peer]['seconds'] / own['seconds']:.1f} times the questions/s, "
        f"{own['memory'] / best[peer]['memory']:.2f} times the peak memory"
    )
    for name in peers:
        pairs = zip(own["answers"], best[name]["answers"], strict=True)
        others = [number for number, (one, other) in enumerate(pairs) if one != other]
        print(f"{task}: {own['rows'] - len(others)} of {own['rows']} answers equal those of {name}")
        if others:
            raise SystemExit(f"{task}: other answers than {name} in rows {others}")


def _child(arguments: argparse.Namespace) -> _children.Result:
    if arguments.child == "prepare":
        from tunekit import Session

        loaded = Session().resolve_model(arguments.model).load()
        _children.keep(loaded.model, loaded.tokenizer, arguments.folder)
        return {}
    model, tokenizer = _children.load(arguments.folder)
    model.eval()
    if arguments.child == "scaling":
        return _scaling(arguments, model, tokenizer)
    task = arguments.tasks[0]
    benchmark, rows = _questions(task, arguments.data, arguments.rows)
    loaded = _children.memory()
    answer = _tunekit if arguments.child == "tunekit" else _harness
    seconds, answers = answer(arguments.child, model, tokenizer, benchmark, rows)
    return {
        "seconds": seconds,
        "rows": len(rows),
        "answers": answers,
        "memory": _children.memory(),
        "loaded": loaded,
    }


def _questions(task: str, data: Path, rows: int, shots: int | None = None) -> tuple[Any, list[Any]]:
    from tunekit_evals.arc import ArcChallenge
    from tunekit_evals.gsm8k import Gsm8k
    from tunekit_evals.mmlu import Mmlu

    classes: dict[str, Any] = {"mmlu": Mmlu, "gsm8k": Gsm8k, "arc": ArcChallenge}
    benchmark = classes[task]()
    options = {"subjects": list(SUBJECTS), "limit": rows} if task == "mmlu" else {}
    folder = {"arc": "llm-foundry"}.get(task, task)
    asked = benchmark.rows(data / folder, {**options, "num_fewshot": shots})
    return benchmark, list(asked)[:rows]


def _tunekit(_: str, model: Any, tokenizer: Any, benchmark: Any, rows: Sequence[Any]) -> tuple[float, list[Any]]:
    from tunekit_evals import TransformersRunner, run_benchmark

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        score = run_benchmark(
            benchmark, rows, TransformersRunner(model, tokenizer), rows_path=Path(folder) / "rows.jsonl"
        )
        seconds = time.perf_counter() - began
        scored = score.rows
    return seconds, [row.logprobs.index(max(row.logprobs)) if row.logprobs else row.output.strip() for row in scored]


def _harness(name: str, model: Any, tokenizer: Any, benchmark: Any, rows: Sequence[Any]) -> tuple[float, list[Any]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from tunekit.plugins import ChoiceRequest

    size = name.rpartition("-")[2]
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=size if size == "auto" else int(size)
    )
    asked = [benchmark.request(row) for row in rows]
    began = time.perf_counter()
    if isinstance(asked[0], ChoiceRequest):
        pairs = [(request.context, choice) for request in asked for choice in request.choices]
        made = harness.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)])
        seconds = time.perf_counter() - began
        values = iter(value for value, _ in made)
        each = [[next(values) for _ in request.choices] for request in asked]
        return seconds, [found.index(max(found)) for found in each]
    texts = harness.generate_until(
        [
            Instance(
                "generate_until",
                {},
                (each.context, {"until": list(each.stop), "max_gen_toks": each.max_new_tokens, "do_sample": False}),
                number,
            )
            for number, each in enumerate(asked)
        ]
    )
    return time.perf_counter() - began, [text.strip() for text in texts]


def _scaling(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> dict[str, Any]:
    seconds: dict[str, list[tuple[int, float]]] = {}
    _tunekit("", model, tokenizer, *_questions("mmlu", arguments.data, 6, 0))
    for shots in SHOTS:
        for count in COUNTS:
            benchmark, rows = _questions("mmlu", arguments.data, count, shots)
            took = _tunekit("", model, tokenizer, benchmark, rows)[0]
            seconds.setdefault(str(shots), []).append((len(rows), took))
    return {"seconds": seconds}


def _draw(seconds: dict[str, list[list[float]]], path: Path) -> None:
    """An SVG of seconds over questions, a line for each number of examples."""
    for shots, points in seconds.items():
        print(f"{shots} examples: " + ", ".join(f"{count} questions {took:.1f} s" for count, took in points))
    width, height, left, bottom = 640, 360, 60, 50
    step = math.ceil(max(took for points in seconds.values() for _, took in points) / 4)
    most = 4.2 * step
    questions = max(count for points in seconds.values() for count, _ in points)

    def place(count: float, took: float) -> tuple[float, float]:
        return left + count / questions * (width - left - 120), height - bottom - took / most * (height - bottom - 40)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="13"'
        ' font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="15">MMLU: seconds by number of questions</text>',
        f'<text x="{left + 170}" y="{height - 10}">questions</text>',
        f'<text transform="translate(16 {height / 2 + 20}) rotate(-90)">seconds</text>',
        f'<path d="M{left} 40V{height - bottom}H{width - 110}" fill="none" stroke="#444"/>',
    ]
    for share in range(5):
        x, y = place(questions * share / 4, step * share)
        parts.append(f'<text x="{x:.0f}" y="{height - 30}" text-anchor="middle">{questions * share / 4:.0f}</text>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{step * share}</text>')
    ends: list[tuple[float, str, str]] = []
    for (shots, points), color in zip(seconds.items(), ("#0072b2", "#e69f00", "#009e73"), strict=False):
        placed = [place(count, took) for count, took in points]
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in placed)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3.5" fill="{color}"/>' for x, y in placed]
        ends.append((placed[-1][1] + 4, color, shots))
    # Names of lines that end together stand below each other, in the order of the lines.
    at = -1e9
    for y, color, shots in sorted(ends):
        at = max(y, at + 15)
        parts.append(f'<text x="{place(questions, 0)[0] + 10:.0f}" y="{at:.0f}" fill="{color}">{shots}-shot</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
