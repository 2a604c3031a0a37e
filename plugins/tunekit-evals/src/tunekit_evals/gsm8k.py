"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): word problems, chain of thought, exact match of the final number.

Eight worked examples stand before each question: the first eight rows of the user's own ``train.jsonl``, with the
calculator marks ``<<...>>`` removed. The answer is read in two ways, both reported (extraction rules as in
lm-evaluation-harness's ``gsm8k`` task):

* ``strict``: the number after ``####``, by the publishers' own expression (grade-school-math ``dataset.py``).
* ``flexible``: the last number in the text.

In both, commas, a dollar sign and a full stop at the end do not count, and the texts must then be equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunekit.errors import DataError
from tunekit.plugins import GenerationRequest, Response, ScoredRow
from tunekit_evals.files import SAMPLE, check_fields, from_hub, read_jsonl, require_folder, short_of_examples

__all__ = ["Gsm8k", "flexible", "strict", "target"]

SHOTS = 8
MAX_NEW_TOKENS = 400

_MARKS = re.compile(r"<<[^<>]*>>")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def strict(text: str) -> str:
    """The number after the first ``####``, or empty."""
    found = _STRICT.search(text)
    return _bare(found.group(1)) if found else ""


def flexible(text: str) -> str:
    """The last number of the text, or empty. ``"1,200"`` is one number."""
    # The expression also takes runs of dots and commas, such as an ellipsis: those are no numbers.
    numbers = [_bare(match) for match in _NUMBER.findall(text) if any(c.isdigit() for c in match)]
    return numbers[-1] if numbers else ""


def _bare(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")


def target(answer: str, file: str, row: int) -> str:
    """The right number of a published answer.

    Raises:
        DataError: if there is none after ``####``.
    """
    number = strict(answer)
    if not number:
        raise DataError(
            f"A row of {file} has no final answer.",
            code="gsm8k-answer",
            asked="a number after #### in the field 'answer'",
            found=f"row {row}: ...{answer[-40:]!r}",
            details={"file": file, "row": row, "field": "answer"},
        )
    return number


class Gsm8k:
    """Word problems whose answer is a number."""

    hub = "openai/gsm8k"

    def __init__(self) -> None:
        self._shots = SHOTS
        self._chat = False
        self._max_new_tokens = MAX_NEW_TOKENS

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Problems in file order.

        Raises:
            DataError: naming file, row and field.
        """
        shots = options.get("num_fewshot")
        self._shots = SHOTS if shots is None else shots
        self._chat = bool(options.get("chat_template"))
        self._max_new_tokens = options.get("max_new_tokens") or MAX_NEW_TOKENS
        folder = SAMPLE / "gsm8k" if source is None else source
        hub = options.get("data") == "hub"
        if not hub:
            require_folder(folder, "gsm8k", inside="test.jsonl")
        examples: list[str] = []
        if self._shots:
            for file, number, row in self._read(folder, "train", hub):
                target(row["answer"], file, number)
                examples.append(f"{_question(row)} {_MARKS.sub('', row['answer'])}\n\n")
                if len(examples) == self._shots:
                    break
            short_of_examples(len(examples), self._shots, f"hub:{self.hub} train" if hub else folder / "train.jsonl")
        rows = [
            {
                "id": f"test/{index}",
                "question": row["question"],
                "target": target(row["answer"], file, number),
                "shots": examples,
            }
            for index, (file, number, row) in enumerate(self._read(folder, "test", hub))
        ]
        yield from rows

    def _read(self, folder: Path, split: str, hub: bool) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
        if not hub:
            yield from read_jsonl(folder / f"{split}.jsonl", ("question", "answer"))
            return
        where = f"hub:{self.hub} {split}"
        for number, row in enumerate(from_hub(self.hub, "main", split), 1):
            check_fields(row, ("question", "answer"), where, number)
            yield where, number, row

    def request(self, row: Mapping[str, Any]) -> GenerationRequest:
        """Examples and question; without a template the model ends by starting another question."""
        prefix = "".join(row["shots"])
        question = _question(row)
        return GenerationRequest(
            context=prefix + question,
            stop=() if self._chat else ("Question:",),
            max_new_tokens=self._max_new_tokens,
            prefix=prefix,
            parts=("", *row["shots"], question),
        )

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        """Strict decides; flexible is reported beside it."""
        read = {"strict": strict(response.text), "flexible": flexible(response.text)}
        variants = {name: number == row["target"] for name, number in read.items()}
        return ScoredRow(
            id=row["id"],
            prompt_hash="",
            prediction=read["strict"],
            target=row["target"],
            correct=variants["strict"],
            output=response.text,
            variants=variants,
            truncated=response.truncated,
        )

    def protocol(self) -> Mapping[str, Any]:
        """How it measures."""
        return {
            "metric": "exact_match (strict)",
            "shots": self._shots,
            "shots_from": "first rows of the train split, calculator marks removed",
            "decoding": "greedy",
            "max_new_tokens": self._max_new_tokens,
            "stop": [] if self._chat else ["Question:"],
            "extraction": {
                "strict": f"first match of {_STRICT.pattern}",
                "flexible": f"last match of {_NUMBER.pattern} that holds a digit",
                "both": "commas, dollar signs and a final full stop removed; equal as text",
            },
        }


def _question(row: Mapping[str, Any]) -> str:
    return f"Question: {row['question'].strip()}\nAnswer:"
