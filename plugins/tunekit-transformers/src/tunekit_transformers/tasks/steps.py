"""The components: one task, or several over one body."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.data import label_counts, split
from tunekit.errors import DataError, OptionsError, nearest
from tunekit.plugins import hf
from tunekit_transformers.tasks import heads, metrics
from tunekit_transformers.tasks.encode import Encoded, TaskEncoder
from tunekit_transformers.tasks.loading import write_tasks
from tunekit_transformers.tasks.tags import bio_problem, is_entities, to_bio
from tunekit_transformers.tasks.trainer import Measuring, TaskData, TaskTrainer

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.data import Dataset
    from tunekit.plugins import StepContext

__all__ = ["Classification", "Multitask", "Ner", "Regression"]


class _OneTask:
    """``post_pretrain`` with one task: a head on the input model, trained with the body or beside an adapter."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train. Raises as :func:`tunekit.plugins.hf.train` does, and ``DataError`` for rows without tokens."""
        options = ctx.options
        assert ctx.data is not None
        loaded = ctx.model()
        source = {"train": ctx.data, "validation": ctx.validation, "test": ctx.further_data.get("test")}
        rows = {name: list(data.read()) for name, data in source.items() if data is not None}
        setup = _Setup(ctx, options.task, options, rows, source, loaded.model, loaded.tokenizer, options.max_length)
        apart = options.task == "regression" and options.pooling == "cosine"
        if apart:
            body = loaded.model.base_model
            body = ctx.adapter.attach(body, seed=ctx.seed) if ctx.adapter else body
            model: Any = heads.CosineModel(body, *setup.score_range())
            task = setup.data()
        else:
            headed, new = heads.with_head(loaded.model, options.task, setup.labels, ctx.seed)
            task = setup.data(headed)
            if not new and task.kind == "regression":
                heads.fold_scale(headed, task.scale, back=True)
            if new and type(headed).__name__ != type(loaded.model).__name__:
                setup.facts["head"] = f"new, {type(headed).__name__}"
            else:
                setup.facts["head"] = "that of the input model, trained further" if not new else "new"
            with hf.quiet():
                model = ctx.adapter.attach(headed, seed=ctx.seed) if ctx.adapter else headed
        _without_cache(model)
        trainer, outcome = _train(ctx, model, loaded.tokenizer, [task])
        if task.kind == "regression" and not apart:
            heads.fold_scale(trainer.model, task.scale)
            task.scale = heads.Scale()
        numbers, reports = _judge(ctx, trainer, task)
        trained = trainer.model.body if apart else trainer.model
        artifact = hf.finish(
            ctx,
            trained,
            loaded.tokenizer,
            outcome=outcome,
            probes=[row["input_ids"].tolist() for row in task.train.rows[:4]],
            details={"task": task.kind, **setup.facts, **_ended(trainer), **reports},
            metrics=numbers,
        )
        write_tasks(
            ctx.dir / "model",
            {
                options.task: _record(
                    task, setup, "cosine" if apart else "model", (model.low, model.high) if apart else None
                )
            },
        )
        shutil.rmtree(ctx.dir / "best", ignore_errors=True)
        return artifact


class Classification(_OneTask):
    """``post_pretrain(task="classification")``."""


class Ner(_OneTask):
    """``post_pretrain(task="ner")``."""


class Regression(_OneTask):
    """``post_pretrain(task="regression")``."""


class Multitask:
    """``post_pretrain(task={...})``: several tasks, one body, a head each."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train. Raises as :func:`tunekit.plugins.hf.train` does, and ``DataError`` for rows without tokens."""
        options = ctx.options
        loaded = ctx.model()
        setups: dict[str, _Setup] = {}
        models: dict[str, Any] = {}
        config = copy.deepcopy(loaded.model.config)
        for name, entry in options.tasks.items():
            source, rows = _parts(ctx, name, entry)
            setups[name] = _Setup(
                ctx, entry.task, entry, rows, source, loaded.model, loaded.tokenizer, options.max_length, name
            )
            models[name], _ = heads.with_head(loaded.model, entry.task, setups[name].labels, ctx.seed, keep=False)
        tasks = [dataclasses.replace(setup.data(models[name]), name=name) for name, setup in setups.items()]
        for task in tasks:
            task.weight = options.tasks[task.name].weight
        body = max((made.base_model for made in models.values()), key=lambda part: hf.count_parameters(part)[0])
        new = {name for made in models.values() for name in made.tunekit_new_modules if hasattr(body, name)}
        body.tunekit_new_modules = tuple(sorted(new))
        # The body has the config of the input model, not that of one of the tasks.
        config.pad_token_id = loaded.tokenizer.pad_token_id
        body.config = config
        model = heads.MultitaskModel(body, models)
        if ctx.adapter:
            with hf.quiet():
                model.body = ctx.adapter.attach(body, seed=ctx.seed)
            model.link()
        _without_cache(model)
        trainer, outcome = _train(ctx, model, loaded.tokenizer, tasks)
        model = trainer.model
        numbers: dict[str, float] = {}
        details: dict[str, Any] = {}
        for task in tasks:
            if task.kind == "regression":
                heads.fold_scale(model.head(task.name), task.scale)
                task.scale = heads.Scale()
            own, reports = _judge(ctx, trainer, task, f"{task.name}_")
            numbers |= own
            details[task.name] = {"task": task.kind, "weight": task.weight, **setups[task.name].facts, **reports}
        counts = trainer.get_train_dataloader().batch_sampler.counts
        for task, count in zip(tasks, counts, strict=True):
            details[task.name]["batches_per_epoch"] = count
        head_parameters = sum(value.numel() for value in model.head_parameters())
        artifact = hf.finish(
            ctx,
            model.body,
            loaded.tokenizer,
            outcome=outcome,
            probes=[row["input_ids"].tolist() for task in tasks for row in task.train.rows[:2]],
            details={"tasks": details, "head_parameters": head_parameters, **_ended(trainer)},
            metrics=numbers,
        )
        records = {task.name: _record(task, setups[task.name], "shared", None) for task in tasks}
        write_tasks(ctx.dir / "model", records, {task.name: model.head(task.name) for task in tasks})
        shutil.rmtree(ctx.dir / "best", ignore_errors=True)
        return dataclasses.replace(artifact, trained_parameters=artifact.trained_parameters + head_parameters)


class _Setup:
    """The labels, encoded rows and facts of one task."""

    def __init__(
        self,
        ctx: StepContext,
        kind: str,
        options: Any,
        rows: Mapping[str, list[Any]],
        source: Mapping[str, Any],
        model: Any,
        tokenizer: Any,
        max_length: int,
        name: str = "",
    ) -> None:
        self.ctx, self.kind, self.options, self.name = ctx, kind, options, name
        self.rows = {part: [(raw.number, dict(row)) for raw, row in found] for part, found in rows.items()}
        self.source = source
        self.facts: dict[str, Any] = {}
        self.entities = True
        self.class_weights: tuple[float, ...] | None = None
        if kind == "ner":
            self._tags()
        self.labels: tuple[str, ...] = ("score",) if kind == "regression" else self._labels()
        with hf.quiet():
            heads.prepare_padding(model, tokenizer)
            self.limit = heads.context_limit(model, tokenizer, max_length)
            self.segments = heads.has_segments(model)
            self.encoder = TaskEncoder(
                kind,
                tokenizer,
                self.limit,
                labels=self.labels if kind != "regression" else None,
                segments=self.segments,
                apart=kind == "regression" and options.pooling == "cosine",
                long=getattr(options, "long", "window"),
                overlap=getattr(options, "overlap", 32),
            )
            self.encoded = {part: self._encode(part) for part in self.rows}
        self.facts |= {"max_length": self.limit, "data": {part: made.facts() for part, made in self.encoded.items()}}
        self._tell()

    def data(self, headed: Any = None) -> TaskData:
        """The task for the trainer; ``headed``: the model whose head learns scores."""
        scale = heads.Scale()
        if self.kind == "regression" and headed is not None:
            scores = [row["score"] for _, row in self.rows["train"]]
            scale = heads.scale_of(headed, scores, self.options.standardize)
            self.facts["learned_as"] = {"mean": scale.mean, "deviation": scale.deviation}
        return TaskData(
            name=self.kind,
            kind=self.kind,
            train=self.encoded["train"],
            labels=self.labels,
            validation=self.encoded.get("validation"),
            test=self.encoded.get("test"),
            class_weights=self.class_weights,
            label_smoothing=getattr(self.options, "label_smoothing", 0.0),
            scale=scale,
            entities=self.entities,
        )

    def score_range(self) -> tuple[float, float]:
        """Scores that stand for cosine 0 and 1."""
        if self.options.score_range is not None:
            low, high = self.options.score_range
            return low, high
        scores = [row["score"] for _, row in self.rows["train"]]
        if min(scores) == max(scores):
            raise DataError("All scores are equal; there is nothing to learn.", code="one-score", found=str(scores[0]))
        return min(scores), max(scores)

    def _tags(self) -> None:
        train = [row["tags"] for _, row in self.rows["train"]]
        self.entities = is_entities(tag for tags in train for tag in tags)
        if not self.entities:
            return
        changed = 0
        for part in self.rows.values():
            for number, (_, row) in enumerate(part):
                if not is_entities([*row["tags"], "B-x"]):
                    wrong = next(tag for tag in row["tags"] if not is_entities([tag, "B-x"]))
                    raise DataError(
                        f"Row {part[number][0]} has the tag {wrong!r} among BIO tags.",
                        code="tag",
                        found=repr(wrong),
                        fix="write O, B-TYPE and I-TYPE",
                        details={"row": part[number][0], "field": "tags"},
                    )
                made = to_bio(row["tags"])
                changed += bio_problem(row["tags"], made)
                row["tags"] = made
        if changed:
            self.facts["tags_turned_into_bio"] = changed
            self._notice("tags", f"{changed:,} tags were turned into BIO: entities begin with B- and go on with I-.")

    def _labels(self) -> tuple[str, ...]:
        field = "tags" if self.kind == "ner" else "label"
        given = self.options.labels
        rows = [row for _, row in self.rows["train"]]
        if given is None:
            counts = label_counts(rows)
            labels = tuple(counts)
        else:
            counts = Counter(tag for row in rows for tag in (row[field] if self.kind == "ner" else [row[field]]))
            labels = tuple(given)
            for number, row in self.rows["train"]:
                for tag in row[field] if self.kind == "ner" else [row[field]]:
                    if tag not in labels:
                        raise DataError(
                            f"Row {number} has the label {tag!r}, which labels= does not name.",
                            code="unknown-label",
                            asked=", ".join(map(repr, labels[:10])),
                            suggestions=nearest(tag, labels),
                            fix="add it to labels=, or leave labels= out",
                            details={"row": number, "field": field},
                        )
        weights = self.options.class_weights
        if weights == "balanced":
            total = sum(counts.values())
            self.class_weights = tuple(total / (len(labels) * max(counts.get(name, 0), 1)) for name in labels)
        elif weights is not None:
            unknown = [name for name in weights if name not in labels]
            if unknown:
                raise OptionsError(
                    f"class_weights names {unknown[0]!r}, which is no class of the data.",
                    code="unknown-label",
                    found=", ".join(map(repr, labels[:10])),
                    suggestions=nearest(unknown[0], labels),
                )
            self.class_weights = tuple(float(weights.get(name, 1.0)) for name in labels)
        self.facts["labels"] = list(labels) if len(labels) <= 200 else len(labels)
        if len(labels) <= metrics.MOST_CLASSES:
            self.facts["label_counts"] = {name: counts.get(name, 0) for name in labels}
        known = set(labels)
        for part in ("validation", "test"):
            rest = [row for _, row in self.rows.get(part, [])]
            unknown = sorted({t for row in rest for t in (row[field] if self.kind == "ner" else [row[field]])} - known)
            if unknown:
                self._notice(
                    "unseen-labels",
                    f"{len(unknown)} labels of the {part} rows are in no training row and can never be predicted: "
                    + ", ".join(map(repr, unknown[:5])),
                )
        return labels

    def _encode(self, part: str) -> Encoded:
        data: Dataset = self.source[part]
        total = len(self.rows[part])

        def tick(done: int) -> None:
            self.ctx.cancel.raise_if_cancelled()
            self.ctx.progress(done, total, "rows", f"tokenizing {part}" + (f" of {self.name}" if self.name else ""))

        return self.encoder.encode_rows(self.rows[part], tick, name=data.name)

    def _tell(self) -> None:
        for part, made in self.encoded.items():
            where = "" if part == "train" else f" {part}"
            if made.cut_rows:
                self._notice(
                    f"rows-cut{'-' + part if where else ''}",
                    f"{made.cut_rows:,} of {len(made.truth):,}{where} rows are longer than {self.limit} tokens; "
                    f"{made.cut_tokens:,} tokens at their ends were cut off.",
                )
            if made.words_without_tokens:
                self._notice(
                    f"words-without-tokens{'-' + part if where else ''}",
                    f"The tokenizer makes no token of {made.words_without_tokens:,} words of the{where} rows; "
                    "they are not learned.",
                )

    def _notice(self, code: str, message: str) -> None:
        self.ctx.notice(code, f"{self.name}: {message}" if self.name else message)


def _parts(ctx: StepContext, name: str, entry: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Data sets and rows of one of several tasks."""
    source: dict[str, Any] = {"train": ctx.further_data[name]}
    for part in ("validation", "test"):
        if f"{name}.{part}" in ctx.further_data:
            source[part] = ctx.further_data[f"{name}.{part}"]
    share = entry.validation
    if isinstance(share, int | float) and not isinstance(share, bool):
        whole = source["train"]
        source["train"], source["validation"] = split(whole, share, ctx.seed)
        copies = len(whole) - len(source["train"]) - len(source["validation"])
        if copies:
            ctx.notice("left-out-held-out-copy", f"{name}: left out {copies:,} rows with the text of a held-out row")
    return source, {part: list(data.read()) for part, data in source.items()}


def _without_cache(model: Any) -> None:
    """Training needs no key-value cache; ``hf.finish`` turns it on again."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False


def _train(ctx: StepContext, model: Any, tokenizer: Any, tasks: Sequence[TaskData]) -> tuple[Any, Any]:
    from transformers import TrainingArguments

    options = ctx.options
    measuring = Measuring(options, any(task.validation for task in tasks), ctx.dir / "best")
    with hf.quiet():
        arguments = hf.training_arguments(
            TrainingArguments, ctx, options, remove_unused_columns=False, label_names=["labels"]
        )
        trainer = TaskTrainer(
            model=model,
            args=arguments,
            tasks=tasks,
            pad=tokenizer.pad_token_id,
            options=options,
            measuring=measuring,
            processing_class=tokenizer,
            callbacks=[hf.TunekitCallback(ctx)],
        )
    outcome = hf.train(ctx, trainer)
    if measuring.stopped_early:
        ctx.notice(
            "stopped-early",
            f"Training stopped after {trainer.state.global_step} of {trainer.state.max_steps} steps: "
            f"{options.early_stopping} measurements were not better.",
        )
    undefined = measuring.undefined(trainer.state) if options.keep_best or options.early_stopping else []
    if undefined:
        ctx.notice(
            "metric-undefined",
            f"{options.metric_for_best} is not defined for the held-out rows at optimizer steps "
            f"{', '.join(map(str, undefined[:5]))}{' ...' if len(undefined) > 5 else ''}: all predictions or all rows "
            "are equal there. These measurements count as the worst.",
        )
    measuring.restore(trainer.model, trainer.state)
    return trainer, outcome


def _judge(ctx: StepContext, trainer: Any, task: TaskData, prefix: str = "") -> tuple[dict[str, float], dict[str, Any]]:
    """Numbers and full reports of the weights that are handed on."""
    numbers: dict[str, float] = {}
    reports: dict[str, Any] = {}
    for part, data, start in (("validation", task.validation, "eval"), ("test", task.test, "test")):
        if data is None:
            continue
        report = trainer.measure(task, data)
        numbers |= {f"{start}_{prefix}{k}": v for k, v in metrics.scalars(report).items() if k != "n"}
        reports[part] = report
    return numbers, reports


def _ended(trainer: Any) -> dict[str, Any]:
    best = trainer.measuring.best(trainer.state)
    found: dict[str, Any] = {"stopped_early": True} if trainer.measuring.stopped_early else {}
    if best is not None:
        found |= {
            "metric_for_best": trainer.options.metric_for_best,
            "best_step": best,
            "weights_of_step": best if trainer.options.keep_best else trainer.state.global_step,
        }
    return found


def _record(task: TaskData, setup: _Setup, form: str, score_range: Any) -> dict[str, Any]:
    return {
        "task": task.kind,
        "form": form,
        "labels": list(task.labels),
        "max_length": setup.limit,
        "entities": task.entities,
        "long": setup.encoder.long,
        "overlap": setup.encoder.overlap,
        "score_range": list(score_range) if score_range is not None else None,
    }
