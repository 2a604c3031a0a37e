"""MMLU (Hendrycks et al. 2021, arXiv:2009.03300): letters by log-likelihood.

Prompt and score are those of the original evaluation, in the wording of lm-evaluation-harness's ``mmlu`` tasks: a
header that names the subject, the five development examples in file order, "Answer:", and the four letters with a
leading space. Each question weighs the same; the mean over subjects is reported beside it.

Data: the publisher's folder (``dev/<subject>_dev.csv``, ``test/<subject>_test.csv``, no header: question, A, B, C, D,
letter), ``categories.json`` beside them if there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit.errors import DataError, nearest
from tunekit.plugins import ChoiceRequest, Response, ScoredRow
from tunekit_evals.files import SAMPLE, from_hub, read_csv, read_json, require_folder, short_of_examples

__all__ = ["Mmlu"]

LETTERS = ("A", "B", "C", "D")
SHOTS = 5


class Mmlu:
    """Four-way questions over many subjects."""

    hub = "cais/mmlu"

    def __init__(self) -> None:
        self.categories: dict[str, str] = {}
        """Subject to category, from ``categories.json``."""
        self._shots = SHOTS
        self._subjects: list[str] = []

    def rows(self, source: Path | None, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Questions, subject by subject; with a ``limit``, evenly many of each, from its start.

        Raises:
            DataError: naming file, row and field.
        """
        shots = options.get("num_fewshot")
        self._shots = SHOTS if shots is None else shots
        if options.get("data") == "hub":
            subjects = self._read_hub(options)
        else:
            subjects = self._read_folder(SAMPLE / "mmlu" if source is None else source, options)
        sizes = {subject: len(test) for subject, (_, test) in subjects.items()}
        counts = {subject: count for subject, count in _evenly(sizes, options.get("limit")) if count}
        self._subjects = list(counts)
        for subject, count in counts.items():
            dev, test = subjects[subject]
            for number, row in enumerate(test[:count]):
                yield {**row, "id": f"{subject}/{number}", "subject": subject, "shots": dev}

    def request(self, row: Mapping[str, Any]) -> ChoiceRequest:
        """Header, examples, question; the choices are the letters."""
        head = (
            "The following are multiple choice questions (with answers) about "
            f"{' '.join(row['subject'].split('_'))}.\n\n"
        )
        shots = [f"{_question(shot)} {shot['answer']}\n\n" for shot in row["shots"]]
        question = _question(row)
        prefix = head + "".join(shots)
        return ChoiceRequest(
            context=prefix + question,
            choices=tuple(f" {letter}" for letter in LETTERS),
            prefix=prefix,
            parts=(head, *shots, question),
        )

    def judge(self, row: Mapping[str, Any], response: Response) -> ScoredRow:
        """The likeliest letter; of equal ones the first."""
        prediction = LETTERS[response.logprobs.index(max(response.logprobs))]
        return ScoredRow(
            id=row["id"],
            prompt_hash="",
            prediction=prediction,
            target=row["answer"],
            correct=prediction == row["answer"],
            logprobs=response.logprobs,
            group=row["subject"],
            truncated=response.truncated,
        )

    def protocol(self) -> Mapping[str, Any]:
        """How it measures."""
        return {
            "metric": "acc",
            "shots": self._shots,
            "shots_from": "dev split, file order",
            "scoring": "log-likelihood of the letters A to D with a leading space",
            "averaging": "each question weighs the same (micro); `macro` is the mean over subjects",
            "subjects": self._subjects,
        }

    def _read_folder(self, folder: Path, options: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
        require_folder(folder, "mmlu", inside="test")
        known = sorted(path.name.removesuffix("_test.csv") for path in (folder / "test").glob("*_test.csv"))
        self.categories = _categories(folder / "categories.json")
        subjects = {}
        for subject in _chosen(options.get("subjects"), known, str(folder / "test")):
            test = [_parse(row, file, n) for file, n, row in read_csv(folder / "test" / f"{subject}_test.csv")]
            dev: list[dict[str, Any]] = []
            if self._shots:
                path = folder / "dev" / f"{subject}_dev.csv"
                dev = [_parse(row, file, n) for file, n, row in read_csv(path)]
                short_of_examples(len(dev), self._shots, path)
            subjects[subject] = (dev[: self._shots], test)
        return subjects

    def _read_hub(self, options: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
        splits: dict[str, dict[str, list[Any]]] = {}
        for split in ("dev", "test"):
            where = f"hub:{self.hub} {split}"
            for number, row in enumerate(from_hub(self.hub, "all", split), 1):
                cells = [row["question"], *row["choices"], _letter(row["answer"])]
                splits.setdefault(row["subject"], {}).setdefault(split, []).append(_parse(cells, where, number))
        subjects = {}
        for subject in _chosen(options.get("subjects"), sorted(splits), f"hub:{self.hub}"):
            dev = splits[subject].get("dev", [])
            short_of_examples(len(dev), self._shots, f"hub:{self.hub} dev {subject}")
            subjects[subject] = (dev[: self._shots], splits[subject].get("test", []))
        return subjects


def _letter(answer: Any) -> str:
    return LETTERS[answer] if isinstance(answer, int) and 0 <= answer < len(LETTERS) else str(answer)


def _question(row: Mapping[str, Any]) -> str:
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{choices}Answer:"


def _parse(cells: Sequence[str], file: str, number: int) -> dict[str, Any]:
    if len(cells) != 6:
        raise DataError(
            f"A row of {file} does not have six columns.",
            code="mmlu-columns",
            asked="question, A, B, C, D, answer letter",
            found=f"row {number}: {len(cells)} columns",
            fix="the publisher's files have no header and six columns; quote cells that hold commas",
            details={"file": file, "row": number, "field": "columns"},
        )
    question, *choices, answer = cells
    if answer.strip() not in LETTERS:
        raise DataError(
            f"A row of {file} has no answer letter.",
            code="mmlu-answer",
            asked="A, B, C or D in the sixth column",
            found=f"row {number}: {answer!r}",
            fix="mend the row; a header line must be removed",
            details={"file": file, "row": number, "field": "answer"},
        )
    if not question.strip():
        raise DataError(
            f"A row of {file} has no question.",
            code="mmlu-question",
            found=f"row {number}: {question!r}",
            details={"file": file, "row": number, "field": "question"},
        )
    return {"question": question, "choices": choices, "answer": answer.strip()}


def _chosen(subjects: Sequence[str] | None, known: Sequence[str], where: str) -> list[str]:
    if not known:
        raise DataError(
            "There are no MMLU subjects.", code="no-subjects", asked="<subject>_test.csv files", found=where
        )
    unknown = [name for name in subjects or () if name not in known]
    if unknown:
        raise DataError(
            f"MMLU has no subject {unknown[0]!r} here.",
            code="unknown-subject",
            asked=", ".join(unknown),
            found=f"{len(known)} subjects in {where}",
            suggestions=nearest(unknown[0], known),
            fix="use one of: " + ", ".join(known),
            details={"field": "subjects"},
        )
    return list(subjects or known)


def _categories(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    content = read_json(path)
    try:
        return {subject: str(entry["category"]) for subject, entry in content.items()}
    except (AttributeError, KeyError, TypeError):
        raise DataError(
            f"{path} has another form than expected.",
            code="mmlu-categories",
            asked='{"<subject>": {"category": "STEM"}, ...}',
            fix="mend the file or remove it: it is only used for sums by category",
            details={"file": str(path), "field": "category"},
        ) from None


def _evenly(sizes: Mapping[str, int], limit: int | None) -> Iterator[tuple[str, int]]:
    """How many rows of each subject: as many of each as ``limit`` in all allows, earlier subjects first."""
    taken = dict.fromkeys(sizes, 0)
    left = sum(sizes.values()) if limit is None else min(limit, sum(sizes.values()))
    while left:
        open_ = [name for name in sizes if taken[name] < sizes[name]]
        each = max(1, min(left // len(open_), min(sizes[name] - taken[name] for name in open_)))
        for name in open_[:left]:
            taken[name] += each
            left -= each
    yield from taken.items()
