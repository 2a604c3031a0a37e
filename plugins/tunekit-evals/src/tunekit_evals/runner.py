"""From questions to a score: requests in groups, answers judged and streamed to disk, numbers with their error.

What runs the model is behind :class:`Runner`; this module never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tunekit.errors import ArtifactError, DataError
from tunekit.plugins import Benchmark, Request, Response, Score, ScoredRow
from tunekit_evals.guard import Guarded

__all__ = ["Answer", "Prompt", "Runner", "run_benchmark", "standard_error", "wilson"]

GROUP_ROWS = 1024
"""Requests tokenized at once; bounds memory, and a fixed number keeps batches the same after an interruption."""


@dataclass(kw_only=True)
class Prompt:
    """One request as it will be shown to the model."""

    request: Request
    text: str
    """The exact prompt, after the chat template and without the examples that did not fit."""
    tokens: int = 0
    """Its length in tokens."""
    bos: int = 0
    """Beginning-of-sequence tokens at its start."""
    shots_dropped: int = 0
    """Few-shot examples left out because the prompt was too long."""
    cut: bool = False
    """The question alone was too long: its beginning was cut."""
    merged: bool = False
    """A token reaches over the boundary between the context and a choice."""

    @property
    def sha256(self) -> str:
        """Hash of :attr:`text`."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer and how it ended."""

    response: Response
    stop: str = ""
    """For generation: ``stop`` (a stop string), ``eos`` or ``length``."""


class Runner(Protocol):
    """Something that answers requests: a model in memory, a server, a file of recorded answers."""

    def prepare(self, requests: Sequence[Request]) -> Sequence[Prompt]:
        """Tokenize and fit requests of one group (they share a prefix), in the same order."""
        ...

    def run(self, prompts: Sequence[Prompt], todo: Collection[int]) -> Iterator[tuple[int, Answer]]:
        """Answer ``prompts[i]`` for every ``i`` in ``todo``, in any order, as they get ready.

        All prompts of the group are given, so that what is shared and how batches are cut does not depend on ``todo``.
        """
        ...

    def facts(self) -> Mapping[str, Any]:
        """What belongs into a score's protocol: engine, chat template, dtype ..."""
        ...


def wilson(correct: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval for a share, 95% by default (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At p = 0 and p = 1 the bound is exact; rounding would leave 1e-17 beside it.
    return (0.0 if correct == 0 else max(0.0, middle - half)), (1.0 if correct == n else min(1.0, middle + half))


def standard_error(p: float, n: int) -> float:
    """Standard error of a mean of ``n`` zeros and ones: sqrt(p (1 - p) / (n - 1)); 0 for a single row."""
    return math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else 0.0


def run_benchmark(
    benchmark: Benchmark,
    rows: Iterable[Mapping[str, Any]],
    runner: Runner,
    limit: int | None = None,
    *,
    rows_path: Path,
    name: str = "",
    source: str = "",
    comparable: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Ask every row, judge the answers, and put the score together.

    Rows already in ``rows_path`` from an interrupted run are kept when their prompt is still the same, and are not
    asked again. Each row is written as soon as it is scored; at the end the file is in the order of ``rows``.

    Args:
        benchmark: how to ask and judge.
        rows: questions, from ``benchmark.rows(...)``; each has an ``id``.
        runner: what answers.
        limit: use the first rows only.
        rows_path: JSON Lines file of the scored rows.
        name: name of the benchmark, for the score.
        source: where the rows come from, for the score.
        comparable: False for the embedded sample.
        progress: called with rows done and rows in all.

    Raises:
        DataError: if there are no rows, or two have the same id.
        PluginError: if the benchmark fails, or gives what no benchmark may.
        ArtifactError: if ``rows_path`` cannot be written.
    """
    guarded = Guarded.of(benchmark, name)
    questions = list(islice(rows, limit))
    ids = [guarded.row_id(row, number) for number, row in enumerate(questions, 1)]
    if not questions:
        raise DataError(
            f"{name or 'The benchmark'} has no rows.",
            code="no-rows",
            asked=f"rows from {source}",
            fix="check the data folder and the options `subjects` and `limit`",
        )
    twice = [row_id for row_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(
            f"{name or 'The benchmark'} has rows with the same id.",
            code="row-id",
            found=", ".join(twice[:5]),
            details={"field": "id"},
        )

    protocol = guarded.protocol()
    done = _read_rows(rows_path)
    scored: dict[int, dict[str, Any]] = {}
    bos = merged = 0
    # Rewritten without the broken last line of a killed run, so that appending is safe.
    _write_rows(rows_path, done.values())
    for start, requests in _groups(guarded, questions):
        prompts = runner.prepare(requests)
        hashes = [prompt.sha256 for prompt in prompts]
        bos = max([bos, *(prompt.bos for prompt in prompts)])
        merged += sum(prompt.merged for prompt in prompts)
        todo = []
        for offset, sha in enumerate(hashes):
            kept = done.get(ids[start + offset])
            if kept is not None and kept["prompt_hash"] == sha:
                scored[start + offset] = kept
            else:
                todo.append(offset)
        for offset, answer in runner.run(prompts, todo):
            prompt, row = prompts[offset], questions[start + offset]
            judged = replace(guarded.judge(row, answer.response), prompt_hash=hashes[offset])
            line = {
                **asdict(judged),
                "prompt_tokens": prompt.tokens,
                "shots_dropped": prompt.shots_dropped,
                "cut": prompt.cut,
                "stop": answer.stop,
            }
            scored[start + offset] = line
            with _writing(rows_path), rows_path.open("a", encoding="utf-8") as stream:
                stream.write(_json_line(line))
            if progress:
                progress(len(scored), len(questions))
    lines = [scored[index] for index in range(len(questions))]
    _write_rows(rows_path, lines)
    facts = {**protocol, **runner.facts(), "bos_tokens": bos, "boundary_merges": merged}
    return _score(guarded, lines, facts, name=name, source=source, comparable=comparable, rows_path=rows_path)


def _groups(benchmark: Guarded, questions: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[Request]]]:
    """Neighbouring requests with the same prefix: (index of the first, requests)."""
    start, group = 0, list[Request]()
    for index, row in enumerate(questions):
        request = benchmark.request(row)
        if group and (
            request.prefix != group[0].prefix or type(request) is not type(group[0]) or len(group) == GROUP_ROWS
        ):
            yield start, group
            start, group = index, []
        group.append(request)
    if group:
        yield start, group


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of an interrupted run by id. What cannot be read back whole is left out and scored again."""
    needed = {f.name for f in fields(ScoredRow)} | {"prompt_tokens", "shots_dropped", "cut", "stop"}
    rows: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return rows
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and needed <= row.keys():
            rows[row["id"]] = row
    return rows


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            "The scored rows cannot be written.",
            code="rows",
            asked=str(path),
            found=str(error),
            fix="free disk space or choose another workdir; rows that are written are kept",
        ) from error


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    aside = path.with_name(path.name + ".tmp")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as stream:
            stream.writelines(_json_line(row) for row in rows)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)


def _score(
    benchmark: Guarded,
    lines: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    *,
    name: str,
    source: str,
    comparable: bool,
    rows_path: Path,
) -> Score:
    n = len(lines)
    correct = sum(bool(line["correct"]) for line in lines)
    value = correct / n

    by_group: dict[str, list[bool]] = {}
    for line in lines:
        if line["group"]:
            by_group.setdefault(line["group"], []).append(bool(line["correct"]))
    groups = {group: _share(flags) for group, flags in by_group.items()}
    variants = {
        variant: _share(bool(line["variants"].get(variant)) for line in lines)
        for variant in dict.fromkeys(key for line in lines for key in line["variants"])
    }
    if len(groups) > 1:
        variants["macro"] = sum(groups.values()) / len(groups)
    # Wider groups, such as MMLU's four categories; by question, like the total.
    category_of = benchmark.categories
    by_category: dict[str, list[bool]] = {}
    for group, flags in by_group.items():
        if group in category_of:
            by_category.setdefault(category_of[group], []).extend(flags)
    groups |= {f"category: {category}": _share(flags) for category, flags in sorted(by_category.items())}

    protocol = {
        **facts,
        "rows": n,
        "truncated_rows": sum(bool(line["truncated"]) for line in lines),
        "prompts_with_shots_dropped": sum(line["shots_dropped"] > 0 for line in lines),
        "prompts_cut": sum(bool(line["cut"]) for line in lines),
        "longest_prompt_tokens": max(line["prompt_tokens"] for line in lines),
        "prompts_sha256": hashlib.sha256("".join(line["prompt_hash"] for line in lines).encode()).hexdigest(),
    }
    stops = Counter(line["stop"] for line in lines if line["stop"])
    if stops:
        protocol["stops"] = dict(sorted(stops.items()))
    low, high = wilson(correct, n)
    return Score(
        benchmark=name,
        metric=str(facts.get("metric", "acc")),
        value=value,
        stderr=standard_error(value, n),
        ci_low=low,
        ci_high=high,
        n=n,
        source=source,
        comparable=comparable,
        protocol=protocol,
        groups=groups,
        variants=variants,
        rows_path=str(rows_path),
    )
