"""Questions with four choices each. The answer is the choice that the model finds likeliest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import DataError
from tunekit.plugins import ChoiceRequest, Response, ScoredRow

QUESTIONS = Path(__file__).with_name("questions.jsonl")


class CapitalsBenchmark:
    """Each question weighs the same."""

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The questions of this package, or those of the user's folder (``questions.jsonl`` in it) or file."""
        path = QUESTIONS if source is None else source / QUESTIONS.name if source.is_dir() else source
        try:
            # not splitlines(): JSON text may hold other line separators as they are
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise DataError(
                "The questions cannot be read.", asked=str(path), found=str(error), details={"file": str(path)}
            ) from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield {**_question(line, path, number), "id": f"capitals/{number}"}

    def request(self, row: Mapping[str, Any]) -> ChoiceRequest:
        """What the model is asked. The choices continue the context, so each begins with a space."""
        return ChoiceRequest(
            context=f"Question: {row['question']}\nAnswer:",
            choices=tuple(f" {choice}" for choice in row["choices"]),
        )

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        """The likeliest choice; of equal ones the first."""
        best = response.logprobs.index(max(response.logprobs))
        prediction, target = row["choices"][best], row["choices"][row["answer"]]
        return ScoredRow(
            id=row["id"],
            prompt_hash="",  # tunekit fills it in
            prediction=prediction,
            target=target,
            correct=best == row["answer"],
            logprobs=response.logprobs,
            truncated=response.truncated,
        )

    def protocol(self) -> Mapping[str, Any]:
        """How it measures; recorded with every score."""
        return {
            "metric": "acc",
            "shots": 0,
            "scoring": "log-likelihood of the whole choice, not normalised by its length",
            "averaging": "each question weighs the same",
        }


def _question(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        question, choices, answer = row["question"], row["choices"], row["answer"]
        if not (isinstance(question, str) and len(choices) == 4 and 0 <= answer < 4):
            raise ValueError("a question, four choices, and the position of the right one from 0")
        return {"question": question, "choices": list(choices), "answer": answer}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"Line {number} of {path.name} is no question.",
            asked='{"question": ..., "choices": [four texts], "answer": 0}',
            found=f"{type(error).__name__}: {error}",
            details={"file": str(path), "row": number, "field": "answer"},
        ) from error
