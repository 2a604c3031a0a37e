"""Trained tasks on disk, and as objects that can be called."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunekit.errors import ArtifactError, DataError
from tunekit.plugins import hf
from tunekit_transformers.tasks import heads
from tunekit_transformers.tasks.encode import TaskEncoder
from tunekit_transformers.tasks.trainer import TaskData, decode, judge, predict

__all__ = ["TaskModel", "load_tasks", "write_tasks"]

FILE = "tunekit_tasks.json"
"""What the tasks of a model folder are."""

HEADS = "heads.safetensors"
"""Weights of the heads over a shared body: ``<task>.<name in the task's model>``."""


class TaskModel:
    """A trained task.

    Attributes:
        kind: ``classification``, ``ner`` or ``regression``.
        labels: classes or tags in the order of the outputs; empty for scores.
        model: the ``transformers`` model; for cosine scores a module around the encoder.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any, record: Mapping[str, Any]) -> None:
        self.kind = str(record["task"])
        self.labels = tuple(record["labels"]) if self.kind != "regression" else ()
        self.model, self.tokenizer = model.eval(), tokenizer
        plain = model.body if isinstance(model, heads.CosineModel) else model
        with hf.quiet():
            heads.prepare_padding(plain, tokenizer)
            self._encoder = TaskEncoder(
                self.kind,
                tokenizer,
                heads.context_limit(plain, tokenizer, int(record.get("max_length") or 1_000_000)),
                labels=self.labels or None,
                segments=heads.has_segments(plain),
                apart=isinstance(model, heads.CosineModel),
                long=str(record.get("long", "window")),
                overlap=int(record.get("overlap", 32)),
            )
        entities = record.get("entities")
        if entities is None:
            from tunekit_transformers.tasks.tags import is_entities

            entities = self.kind == "ner" and is_entities(self.labels)
        self._task = TaskData(
            name=self.kind, kind=self.kind, train=self._encode([]), labels=self.labels, entities=bool(entities)
        )

    def __call__(self, inputs: Any, pairs: Any = None, *, batch_size: int = 32) -> Any:
        """Classes (text), scores (float), or the tags of each word.

        Args:
            inputs: texts; for ``ner`` sentences as lists of words. One alone gives one answer alone.
            pairs: the second texts, where rows are pairs.
            batch_size: rows at a time; it does not change the answers.

        Raises:
            DataError: for a text of which the tokenizer makes no token.
        """
        one = isinstance(inputs, str) or (self.kind == "ner" and bool(inputs) and isinstance(inputs[0], str))
        data = self._encode(self._rows([inputs] if one else inputs, [pairs] if one and pairs is not None else pairs))
        outputs, _, _ = predict(self.model, self._task, data, self.tokenizer.pad_token_id, batch_size)
        found = decode(self._task, data, outputs)
        return found[0] if one else found

    def logits(self, inputs: Sequence[Any], pairs: Any = None, *, batch_size: int = 32) -> list[np.ndarray[Any, Any]]:
        """Outputs per row: (classes,), (1,), or (words, tags); of a sentence in windows, one array per window."""
        data = self._encode(self._rows(inputs, pairs))
        outputs: list[np.ndarray[Any, Any]]
        outputs, _, _ = predict(self.model, self._task, data, self.tokenizer.pad_token_id, batch_size)
        return outputs

    def evaluate(self, rows: Iterable[Mapping[str, Any]], *, batch_size: int = 32) -> dict[str, Any]:
        """The metrics of the task on canonical rows (a list, or a ``tunekit.data.Dataset``): see ``metrics``."""
        from tunekit_transformers.tasks.tags import to_bio

        made = [dict(row) for row in rows]
        if self.kind == "ner" and self._task.entities:
            for row in made:
                row["tags"] = to_bio(row["tags"])
        data = self._encode(made)
        outputs, _, _ = predict(self.model, self._task, data, self.tokenizer.pad_token_id, batch_size)
        return judge(self._task, data, outputs)

    def save(self, folder: str | Path) -> Path:
        """Write the task alone, as an ordinary ``transformers`` folder with its tokenizer. What was there is replaced.

        Raises:
            ArtifactError: if the disk is full or cannot be written.
        """
        plain = self.model.body if isinstance(self.model, heads.CosineModel) else self.model
        path = hf.save_model(plain, self.tokenizer, Path(folder))
        if plain is not self.model:
            _write_json(path, {self.kind: _cosine_record(self)})
        return path

    def _rows(self, inputs: Sequence[Any], pairs: Any) -> list[dict[str, Any]]:
        if self.kind == "ner":
            return [{"tokens": list(words)} for words in inputs]
        if pairs is not None and len(pairs) != len(inputs):
            raise DataError(
                f"{len(inputs)} texts and {len(pairs)} second texts.", code="pairs", fix="pass as many of both"
            )
        rows: list[dict[str, Any]] = [{"text": text} for text in inputs]
        for row, second in zip(rows, pairs if pairs is not None else (), strict=False):
            row["text_pair"] = second
        return rows

    def _encode(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        with hf.quiet():
            return self._encoder.encode_rows(enumerate(rows, 1))


def _cosine_record(task: TaskModel) -> dict[str, Any]:
    return {
        "task": task.kind,
        "form": "cosine",
        "labels": ["score"],
        "max_length": task._encoder.limit,
        "score_range": [task.model.low, task.model.high],
    }


def load_tasks(folder: str | Path) -> dict[str, TaskModel]:
    """The tasks in a model folder: that of a step (``result.model.path``), or any classifier, tagger or scorer.

    Returns:
        Task name to task; a folder with one task names it after its kind.

    Raises:
        ArtifactError: if it holds none, or a file is missing or damaged.
    """
    path = Path(folder)
    loaded = hf.load_folder(path)
    records = _records(path, loaded.model)
    found = {}
    for name, record in records.items():
        if record["form"] == "cosine":
            model: Any = heads.CosineModel(loaded.model, *record["score_range"])
        elif record["form"] == "shared":
            model = _with_stored_head(path, name, record, loaded.model)
        else:
            model = loaded.model
        found[name] = TaskModel(model, loaded.tokenizer, record)
    return found


def _records(path: Path, model: Any) -> dict[str, Any]:
    file = path / FILE
    if file.is_file():
        try:
            records: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
            return records
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{file} cannot be read: {error}.", code="tasks", asked=str(path)) from error
    kind = type(model).__name__
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    if kind.endswith("ForTokenClassification"):
        return {"ner": {"task": "ner", "form": "model", "labels": labels}}
    if kind.endswith("ForSequenceClassification"):
        score = model.config.problem_type == "regression" or len(labels) == 1
        task = "regression" if score else "classification"
        return {task: {"task": task, "form": "model", "labels": labels}}
    raise ArtifactError(
        f"{path} holds a {kind}, which has no task.",
        code="tasks",
        asked=str(path),
        fix='train one: post_pretrain(task="classification", data=...)',
    )


def _with_stored_head(path: Path, name: str, record: Mapping[str, Any], body: Any) -> Any:
    import transformers
    from safetensors import safe_open

    try:
        config = transformers.AutoConfig.for_model(**record["config"])
        made, _ = heads.bare_head(config, record["task"], next(body.parameters()).dtype)
        heads.give_body(made, body)
        with safe_open(path / HEADS, framework="pt") as stored:
            state = {
                key.partition(".")[2]: stored.get_tensor(key)
                for key in stored.keys()  # noqa: SIM118  (not a mapping)
                if key.partition(".")[0] == name
            }
        missing, unexpected = made.load_state_dict(state, strict=False)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"The head of task {name!r} in {path} cannot be read: {error}.",
            code="tasks",
            asked=str(path),
            fix="copy or make the folder again",
        ) from error
    lost = [key for key in missing if not key.startswith(f"{made.base_model_prefix}.")] + list(unexpected)
    if lost:
        raise ArtifactError(
            f"Weights of the head of task {name!r} in {path} are missing.", code="tasks", found=", ".join(lost[:5])
        )
    return made.to(next(body.parameters()).device).eval()


def write_tasks(folder: Path, records: Mapping[str, Any], models: Mapping[str, Any] | None = None) -> None:
    """Say in a model folder which tasks it holds; ``models``: task to the model whose head is stored beside the body.

    Raises:
        ArtifactError: if the disk is full or cannot be written.
    """
    made = {name: dict(record) for name, record in records.items()}
    if models is None:
        _write_json(folder, made)
        return
    from safetensors.torch import save_file

    weights: dict[str, Any] = {}
    for name, model in models.items():
        made[name]["config"] = json.loads(model.config.to_json_string(use_diff=False))
        weights |= {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with hf.storage_errors(folder):
        aside = folder / f"{HEADS}.partial"
        save_file(weights, aside, metadata={"format": "pt"})
        aside.replace(folder / HEADS)
    _write_json(folder, made)


def _write_json(folder: Path, records: Mapping[str, Any]) -> None:
    with hf.storage_errors(folder):
        aside = folder / f"{FILE}.partial"
        with aside.open("w", encoding="utf-8") as stream:
            json.dump({"schema": 1, "tasks": records}, stream, ensure_ascii=False, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(folder / FILE)
