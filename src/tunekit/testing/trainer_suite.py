"""The laws that every trainer keeps, as tests."""

from __future__ import annotations

import copy
import math
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tunekit._values import lora
from tunekit.cancel import CancelToken
from tunekit.errors import CheckFailed, DataError, RunCancelled, TunekitError
from tunekit.events import ArtifactWritten, CheckpointSaved, Event, MetricLogged, Progress, StepFinished, StepStarted
from tunekit.testing import trainer_rows
from tunekit.testing.fakes import tiny_pair, toy_rows
from tunekit.testing.model_probes import distance, logits, tokenizer_differences, told
from tunekit.testing.recording import RecordingEvents
from tunekit.testing.suite import Suite, find_entry, suite_session
from tunekit.testing.trainer_trial import (
    KeptModel,
    Trained,
    Trial,
    change,
    disturb_random_states,
    first_loss,
    history_losses,
    one_thread,
    plain_json,
    same_losses,
    shown_losses,
    state_of,
    stop_probability,
    with_dropout,
    with_loud_head,
)

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.plan import AdapterPlan
    from tunekit.session import Session

__all__ = ["TrainerSuite"]

COMMON = {"max_length": 192, "learning_rate": 1e-2, "warmup": 0.0}
STEPS = 8
KILLED_AT, CANCELLED_AT = 6, 3

_RUNS: pytest.StashKey[tuple[Path, dict[str, Trained]]] = pytest.StashKey()


class TrainerSuite(Suite):
    """Laws of a trainer. ``class TestDpo(TrainerSuite): name = "acme-rl/dpo"`` is a whole test file.

    A trainer whose options derive from ``TrainOptions`` needs nothing else. For others override the methods
    ``batch_options``, ``step_options`` and ``checkpoint_options``. What the suite sets by itself it leaves out where
    the trainer has no such option; what the fixture ``options`` gives is always passed on.

    Every run trains on a tiny model for a few optimizer steps. Several tests look at the same run.
    """

    kind: ClassVar[str] = "trainer"

    shape: ClassVar[str] = ""
    """Shape of the training rows; default: the first that the trainer's spec names."""
    loss_name: ClassVar[str] = "loss"
    """Name of the loss among the logged values."""
    loss_tolerance: ClassVar[float] = 1e-4
    """Largest relative difference between losses that ought to be the same up to rounding."""
    weights_tolerance: ClassVar[float] = 1e-2
    """Largest difference between weights that ought to be the same up to rounding, as a share of what training
    changed."""
    loss_falls_to: ClassVar[float] = 0.9
    """The mean loss of the last quarter of the steps is below this share of that of the first quarter."""
    stop_gain: ClassVar[float] = 5.0
    """The probability of the end-of-text token after an answer grows at least by this factor."""
    steps_after_cancel: ClassVar[int] = 1
    """Optimizer steps that may still end after a cancel: the one that was under way."""
    uses_randomness: ClassVar[bool] = True
    """Whether another seed gives other losses, as the order of the rows does."""

    # What a subclass may override.

    @pytest.fixture
    def model(self, entry: Entry, adapter: AdapterPlan | None) -> Any:
        """``(model, tokenizer)`` that training starts from; None for a trainer that starts from nothing."""
        if entry.component.stage == "pretrain":
            return None
        return tiny_pair() if adapter is None else with_loud_head(tiny_pair())

    @pytest.fixture
    def rows(self, entry: Entry) -> list[dict[str, Any]]:
        """Sixteen rows of unequal lengths that can be learned."""
        return toy_rows(self._shape(entry))

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Options of every run, such as the size of the model that the trainer makes."""
        return {}

    @pytest.fixture
    def adapter(self) -> AdapterPlan | None:
        """Adapter of every run; None: full training."""
        return None

    def batch_options(self, batch_size: int, gradient_accumulation: int) -> dict[str, Any]:
        """Options for this many rows per micro-batch and micro-batches per optimizer step."""
        return {"batch_size": batch_size, "gradient_accumulation": gradient_accumulation}

    def step_options(self, steps: int) -> dict[str, Any]:
        """Options for this many optimizer steps."""
        return {"max_steps": steps}

    def checkpoint_options(self, every: int) -> dict[str, Any]:
        """Options for a checkpoint after each ``every`` optimizer steps."""
        return {"checkpoint_every": every}

    def stopping_rows(self, shape: str) -> list[dict[str, Any]]:
        """Rows in which nothing but the end of the answer tells good from bad."""
        return trainer_rows.stopping_rows(shape)

    def unlearnable_rows(self, shape: str) -> Mapping[str, dict[str, Any]]:
        """Rows of which nothing is left to learn at ``max_length=192``, by why."""
        return trainer_rows.unlearnable_rows(shape)

    def loss_of_batch(self, alone: Sequence[tuple[float, float | None]]) -> float:
        """The loss of a batch from ``(loss, target tokens)`` of each of its rows alone.

        Default: the mean over all target tokens; where the trainer logs no ``tokens``, the mean over the rows.
        """
        weights = [1.0 if tokens is None else tokens for _, tokens in alone]
        return sum(loss * weight for (loss, _), weight in zip(alone, weights, strict=True)) / sum(weights)

    # The machinery.

    @pytest.fixture
    def kept_model(self) -> KeptModel:
        """Sees the model that the trainer hands on."""
        return KeptModel()

    @pytest.fixture
    def session(self, kept_model: KeptModel) -> Session:
        """A session with the installed plugins, those of ``plugins``, and one that looks on."""
        return suite_session(self.plugins, kept_model)

    @pytest.fixture
    def entry(self, session: Session) -> Entry:
        """The trainer."""
        return find_entry(session, type(self).__name__, self.kind, self.name, self.stage)

    @pytest.fixture
    def shared_runs(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, dict[str, Trained]]:
        """The folder and the finished runs that the tests of a class share."""
        stash = request.node.getparent(pytest.Class).stash
        if _RUNS not in stash:
            stash[_RUNS] = tmp_path_factory.mktemp("trainer"), {}
        folder, runs = stash[_RUNS]
        return folder, runs

    @pytest.fixture
    def trial(
        self,
        session: Session,
        entry: Entry,
        model: Any,
        rows: list[dict[str, Any]],
        options: dict[str, Any],
        adapter: AdapterPlan | None,
        kept_model: KeptModel,
        shared_runs: tuple[Path, dict[str, Trained]],
    ) -> Iterator[Trial]:
        """Runs the trainer."""
        folder, shared = shared_runs
        made = Trial(
            session=session,
            entry=entry,
            model=model,
            rows=rows,
            options=options,
            adapter=adapter,
            loss_name=self.loss_name,
            folder=folder,
            shared=shared,
            kept=kept_model,
            plugins=self.plugins,
        )
        common: dict[str, Any] = COMMON if adapter is None else {**COMMON, "learning_rate": 3e-2}
        if made.samples:
            common = {**common, "samples": 0}
        made.options = {**made.having(**common), **options}
        with one_thread():
            yield made

    def _shape(self, entry: Entry) -> str:
        for shape in (self.shape, *getattr(entry.spec, "data", ())):
            if shape:
                return str(shape)
        pytest.fail(f"{self.name} names no row shape in its spec: set shape in {type(self).__name__}", pytrace=False)

    def _whole_arguments(self, trial: Trial) -> dict[str, Any]:
        """Eight optimizer steps of two micro-batches over two epochs, with dropout: what a resume can lose shows."""
        model = {} if trial.model is None else {"model": with_dropout(trial.model, 0.1)}
        samples = {"samples": trial.samples} if trial.samples else {}
        steps = {**self.step_options(STEPS), **self.batch_options(2, 2), **self.checkpoint_options(2)}
        return {**model, **samples, **steps}

    def _whole(self, trial: Trial) -> Trained:
        return trial.once("whole", **self._whole_arguments(trial))

    # The laws.

    def test_same_seed_same_losses(self, trial: Trial) -> None:
        whole = self._whole(trial)
        disturb_random_states()
        again = trial.run("again", **self._whole_arguments(trial))
        same_losses(
            again.losses,
            whole.losses,
            "two runs with the same seed",
            "a shuffle, a dropout mask or an initial weight that is drawn from an unseeded generator, or from the "
            "global one without seeding it with ctx.seed",
        )
        assert again.weights_hash == whole.weights_hash, told(
            "two runs with the same seed have the same losses but other weights",
            "the same weights, bit for bit",
            "something random after the last loss, such as noise in saving or merging",
        )

    def test_another_seed_gives_other_losses(self, trial: Trial) -> None:
        if not self.uses_randomness:
            pytest.skip("the trainer says that it draws no random numbers (uses_randomness)")
        whole = self._whole(trial)
        other = trial.run("other-seed", seed=1, **self._whole_arguments(trial))
        assert other.losses != whole.losses, told(
            "seeds 0 and 1 give the same losses",
            "other losses",
            "a constant in place of ctx.seed; if the trainer draws no random numbers, set uses_randomness = False",
        )

    def test_accumulation_1x8_equals_8x1(self, trial: Trial) -> None:
        # Plain SGD without clipping: Adam divides by the size of the gradient, and so hides a factor in it.
        plain = trial.having(optimizer="sgd", max_grad_norm=0.0, weight_decay=0.0, learning_rate=0.05)
        whole = trial.run("8x1", **{**plain, **self.step_options(3), **self.batch_options(8, 1)})
        split = trial.run("1x8", **{**plain, **self.step_options(3), **self.batch_options(1, 8)})
        mistake = (
            "a mean over micro-batch means in place of sum / target tokens of all micro-batches (use "
            "num_items_in_batch), or a gradient that is not divided by the number of micro-batches"
        )
        self._close(split.losses, whole.losses, "losses with eight micro-batches of one row and one of eight", mistake)
        start, left, right = trial.start_state(**self.batch_options(8, 1)), whole.state(), split.state()
        changed, apart = change(left, start), change(left, right)
        assert apart <= self.weights_tolerance * changed, told(
            f"weights after eight micro-batches of one row and after one of eight differ by {apart:.3g}; training "
            f"changed them by {changed:.3g}",
            f"at most {self.weights_tolerance:g} of that",
            mistake,
        )

    def test_padding_does_not_change_the_loss(self, trial: Trial) -> None:
        one = self.step_options(1)
        mistake = (
            "labels of padding that are not ignored (-100), padding masked by id in place of length, or an attention "
            "mask that is missing; in packed blocks: one document sees another. If the loss is a mean over target "
            "tokens, log their number as 'tokens'; another mean is said in loss_of_batch"
        )
        if trial.model is None:
            # The tokenizer comes from the rows, so they cannot be trained on one by one.
            together = trial.run("padded", **one, **self.batch_options(len(trial.rows), 1))
            alone = trial.run("unpadded", **one, **self.batch_options(1, len(trial.rows)))
            self._close(together.losses, alone.losses, "the first loss of a padded batch and of its rows", mistake)
            return
        ordered = sorted(trial.rows, key=trainer_rows.row_length)
        pair = [ordered[0], ordered[-1]]
        parts = []
        for number, row in enumerate(pair):
            run = trial.run(f"alone-{number}", rows=[row], **one, **self.batch_options(1, 1))
            parts.append(first_loss(run))
        padded = trial.run("both", rows=pair, **one, **self.batch_options(2, 1))
        self._close(
            padded.losses,
            [self.loss_of_batch(parts)],
            f"the loss of a short and a long row in one batch and the one expected from each alone {parts}",
            mistake,
        )

    def test_order_in_the_batch_does_not_change_the_loss(self, trial: Trial) -> None:
        rows = sorted(trial.rows, key=trainer_rows.row_length)[:4]
        options = {**self.step_options(1), **self.batch_options(len(rows), 1)}
        forth = trial.run("forth", rows=rows, **options)
        back = trial.run("back", rows=rows[::-1], **options)
        self._close(
            back.losses,
            forth.losses,
            "the loss of a batch and of the same rows the other way round",
            "columns that are sorted or filtered apart from each other, or attention that reaches into the row before",
        )

    def test_killed_and_resumed_equals_uninterrupted(self, trial: Trial) -> None:
        whole = self._whole(trial)
        arguments = self._whole_arguments(trial)
        if trial.model is not None:
            arguments["model"] = trial.saved(arguments["model"])
        try:
            code = trial.kill(trial.pipeline(**arguments), "killed", KILLED_AT)
        except LookupError as error:
            pytest.fail(f"the kill needs a process of its own, but {error}", pytrace=False)
        assert code == -signal.SIGKILL, told(
            f"the process was not killed at the checkpoint of step {KILLED_AT} but ended with code {code}",
            f"ctx.checkpoint_saved(path, {KILLED_AT}) with the options {self.checkpoint_options(2)}",
            "checkpoints that are written but not reported, or an option of another name (checkpoint_options)",
        )
        resumed = trial.run("killed", **arguments)
        self._continues(resumed, whole, KILLED_AT, "after a SIGKILL")

    def test_cancel_within_one_step_leaves_a_resumable_checkpoint(self, trial: Trial) -> None:
        whole = self._whole(trial)
        cancel, events = CancelToken(), RecordingEvents()

        def stop(event: Event) -> None:
            if isinstance(event, MetricLogged) and event.global_step == CANCELLED_AT:
                cancel.cancel("the suite cancels here")

        arguments = {**self._whole_arguments(trial), **self.checkpoint_options(STEPS)}
        try:
            trial.run("cancelled", cancel=cancel, on_event=stop, events=events, **arguments)
        except RunCancelled:
            pass
        else:
            pytest.fail(
                told(
                    f"the run was cancelled at step {CANCELLED_AT} and went on to its end",
                    "RunCancelled within one optimizer step",
                    "ctx.cancel is never looked at: hf.TunekitCallback does that, or ctx.cancel.raise_if_cancelled()",
                ),
                pytrace=False,
            )
        last = max(event.global_step for event in events.of(MetricLogged))
        assert last <= CANCELLED_AT + self.steps_after_cancel, told(
            f"cancelled at step {CANCELLED_AT}, the trainer ended {last - CANCELLED_AT} more steps",
            f"at most {self.steps_after_cancel}",
            "ctx.cancel is looked at once per epoch or per checkpoint",
        )
        saved = [event.global_step for event in events.of(CheckpointSaved)]
        assert saved and saved[-1] == last, told(
            f"the last optimizer step was {last}, checkpoints were reported of {saved}",
            f"a checkpoint of step {last}",
            "training stops on a cancel without saving",
        )
        resumed = trial.run("cancelled", **arguments)
        self._continues(resumed, whole, last, "after a cancel")

    def test_loss_falls(self, trial: Trial) -> None:
        losses = self._whole(trial).losses
        quarter = max(1, len(losses) // 4)
        first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
        assert last < self.loss_falls_to * first, told(
            f"the mean loss went from {first:.4f} to {last:.4f}",
            f"below {self.loss_falls_to:g} of the first (loss_falls_to), on rows that a tiny model learns",
            "an optimizer that holds other parameters than the model's, a learning rate of zero, or labels that are "
            "shifted twice",
        )

    def test_weights_change(self, trial: Trial) -> None:
        start, now = trial.start_state(), self._whole(trial).state()
        assert start.keys() == now.keys(), told(
            f"the saved model has other parameters: {sorted(start.keys() ^ now.keys())[:4]}",
            "those of the input model",
            "an adapter or a wrapper that is still on the model when it is saved",
        )
        bad = sorted(name for name, value in now.items() if not bool(value.isfinite().all()))
        assert not bad, told(f"weights that are no numbers: {bad[:4]}", "finite weights", "a diverged loss")
        changed = [name for name, value in now.items() if not bool((value == start[name]).all())]
        due = 1 if trial.adapter is not None else len(now) // 2
        assert len(changed) >= due, told(
            f"{len(changed)} of {len(now)} tensors of the saved model differ from the start",
            f"at least {due}",
            "the untrained model is saved: a copy was trained, or the weights were saved before training",
        )

    def test_events_are_ordered(self, trial: Trial) -> None:
        whole = self._whole(trial)
        assert not whole.early, told(
            f"CheckpointSaved named {whole.early[0] if whole.early else ''} when nothing was there yet",
            "a complete folder at the moment of the event: a run may be killed right then",
            "ctx.checkpoint_saved is called before the checkpoint is written",
        )
        whole.events.assert_ordered()
        name = whole.step.name
        own = [event for event in whole.events.events if event.step == name]
        begin = next(number for number, event in enumerate(own) if isinstance(event, StepStarted))
        kinds = [type(event) for event in own[begin:]]
        assert kinds[-1] is StepFinished and kinds[-2] is ArtifactWritten, f"the step ended with {kinds[-3:]}"
        steps = [event.global_step for event in whole.logged]
        assert steps == list(range(1, STEPS + 1)), told(
            f"losses were logged of the steps {steps}",
            f"every optimizer step from 1 to {STEPS}, once each",
            "logging every n steps, counting micro-batches, or counting from 0",
        )
        saved = [event.global_step for event in whole.events.of(CheckpointSaved)]
        assert saved[:1] == [2], told(f"checkpoints of {saved}", "one each 2 steps", "checkpoints are not reported")
        assert all(Path(event.path).is_dir() for event in whole.events.of(ArtifactWritten))
        over = [e for e in whole.events.of(Progress) if e.total is not None and e.done > e.total]
        assert not over, f"progress exceeds its total: {over[:2]}"

    def test_no_labels_is_an_error(self, trial: Trial) -> None:
        good = trial.rows[:3]
        for number, (why, bad) in enumerate(self.unlearnable_rows(self._shape(trial.entry)).items()):
            if "max_length" in why and "max_length" not in trial.fields:
                continue
            try:
                run = trial.run(
                    f"unlearnable-{number}", rows=[*good, bad], **self.step_options(1), **self.batch_options(4, 1)
                )
            except (DataError, CheckFailed) as error:
                assert error.details.get("row") == 4 or re.search(r"\brow 4\b", str(error)), told(
                    f"the error does not name the row: {error}",
                    "details['row'] == 4, counted from 1",
                    "the error is raised where the number of the row is no longer known",
                )
            else:
                pytest.fail(
                    told(
                        f"row 4 has nothing to learn ({why}) and was trained on; the loss was {run.losses}",
                        "DataError that names the row",
                        "labels are cut together with the ids, and a row of which none is left counts as zero, or as "
                        "NaN when it is alone in its micro-batch",
                    ),
                    pytrace=False,
                )

    @pytest.mark.parametrize("padding", ["own-pad", "pad-is-eos"])
    def test_end_of_text_is_trained(self, trial: Trial, padding: str) -> None:
        if trial.stage == "reward":
            pytest.skip("a reward model writes no text")
        if padding == "pad-is-eos" and trial.model is None:
            pytest.skip("the trainer makes its own tokenizer")
        rows = self.stopping_rows(self._shape(trial.entry))
        model, tokenizer = trial.start_model(rows)
        arguments: dict[str, Any] = {}
        if padding == "pad-is-eos":
            model, tokenizer = copy.deepcopy(model), copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.eos_token_id
            arguments["model"] = model, tokenizer
        run = trial.run(f"stop-{padding}", rows=rows, **self.step_options(30), **self.batch_options(4, 1), **arguments)
        assert run.step.model is not None
        trained, its_tokenizer = run.step.model.load()
        probes = trainer_rows.stop_probes(rows, its_tokenizer)
        before, after = stop_probability(model, probes), stop_probability(trained, probes)
        assert after >= self.stop_gain * before, told(
            f"the probability of the end of text after an answer went from {before:.4f} to {after:.4f}",
            f"{self.stop_gain:g} times as much (stop_gain)",
            "the end-of-text token is not in the rows, is cut off, or is masked: labels[ids == pad] = -100 masks it "
            "where it is the padding token too",
        )

    def test_metrics_are_finite_and_named(self, trial: Trial) -> None:
        whole = self._whole(trial)
        for event in whole.events.of(MetricLogged):
            assert self.loss_name in event.values or event.global_step == 0, told(
                f"step {event.global_step} logged {sorted(event.values)}",
                f"a finite {self.loss_name!r} among them",
                "a loss that is no number (such values are left out), or another name (set loss_name)",
            )
            bad = {k: v for k, v in event.values.items() if not isinstance(v, int | float) or not math.isfinite(v)}
            assert not bad, f"step {event.global_step} logged {bad}"
        artifact = whole.step.artifact
        assert artifact.metrics and plain_json(artifact.metrics) and plain_json(artifact.details), told(
            f"final metrics {dict(artifact.metrics)} and details {dict(artifact.details)}",
            "metrics, and both of JSON types without infinities",
            "tensors or numpy numbers in place of float(...)",
        )
        assert artifact.trained == whole.step.trains
        assert artifact.model is not None and artifact.model.parameters == sum(
            v.numel() for v in whole.state().values()
        )
        if trial.adapter is None:
            assert artifact.trained_parameters == artifact.model.parameters, told(
                f"{artifact.trained_parameters} of {artifact.model.parameters} parameters are said to be trained",
                "all of them: this is full training",
                "parameters counted after they were frozen, or tied ones counted twice",
            )

    def test_artifact_loads_and_generates(self, trial: Trial) -> None:
        import torch
        import transformers

        run = trial.run("handed-on", **self.step_options(2), **self.batch_options(4, 1))
        assert run.step.model is not None
        folder = run.step.model.path
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        cls = getattr(transformers, config.architectures[0])
        model = cls.from_pretrained(folder, local_files_only=True, dtype="auto").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        kept = trial.kept
        if kept is not None and kept.logits is not None:
            apart = distance(logits(model), kept.logits)
            assert apart <= 1e-5, told(
                f"logits of the saved model and of the one handed on with ctx.keep differ by {apart:.3g}",
                "the same model: whether a step reads it from disk must not change a result",
                "the model is saved before the last step, or kept with an adapter, in training mode or in another type",
            )
            assert tokenizer_differences(kept.tokenizer, tokenizer) == []
        if hasattr(model, "generate") and trial.stage != "reward":
            ids = tokenizer("Say red", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                out = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            assert out.shape[1] > ids.shape[1]

    def test_nothing_written_outside_the_step_folder(
        self, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments: dict[str, Any] = {} if trial.model is None else {"model": trial.saved(trial.model)}
        for name in ("here", "home", "temp"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
        assert trial.kept is not None
        trial.kept.watched = (tmp_path, trial.folder)
        trial.run(
            "outside", **arguments, **self.step_options(2), **self.batch_options(4, 1), **self.checkpoint_options(1)
        )
        assert trial.kept.strays == [], told(
            f"the step left files outside its folder: {', '.join(trial.kept.strays or ())}",
            "everything below ctx.dir or ctx.cache: the rest is not cleaned up and not published",
            "a log folder or cache of a library below the current directory, or output_dir without ctx.dir",
        )

    def test_through_an_adapter(self, trial: Trial) -> None:
        if not getattr(trial.entry.spec, "adapters", False):
            pytest.skip("the trainer's spec says adapters=False")
        if trial.session.registry.get("adapter", "lora") is None:
            pytest.skip("no plugin provides the adapter lora: pip install tunekit-peft")
        run = trial.run("adapter", adapter=lora(r=4), **self.step_options(4), **self.batch_options(4, 1))
        artifact = run.step.artifact
        assert run.step.adapter_path is not None and any(run.step.adapter_path.iterdir()), told(
            "the artifact names no adapter folder", "adapter_path", "ctx.adapter is ignored; hf.finish writes it"
        )
        assert artifact.model is not None and 0 < artifact.trained_parameters < artifact.model.parameters / 2, told(
            f"{artifact.trained_parameters} parameters are said to be trained through LoRA of rank 4",
            "some, and fewer than half of the model's",
            "ctx.adapter is ignored, or the base is not frozen",
        )
        model = trial.start_model(trial.rows)[0]
        outside = {name for name, value in state_of(model).items() if value.dim() < 2}
        outside |= {name for name, value in model.named_parameters() if value is model.get_input_embeddings().weight}
        start, now = trial.start_state(), run.state()
        changed = {name for name, value in now.items() if not bool((value == start[name]).all())}
        assert changed and not changed & outside, told(
            f"{len(changed)} tensors changed, among them {sorted(changed & outside)[:3]}",
            "only linear layers: LoRA touches neither norms nor embeddings",
            "the base is trained together with the adapter, or the merge is left out",
        )

    def test_bad_option_is_refused_before_anything_runs(self, trial: Trial) -> None:
        wrong: list[dict[str, Any]] = [{"learning_rat": 1e-3}]
        wrong += [{"learning_rate": "fast"}] if "learning_rate" in trial.fields else []
        for number, option in enumerate(wrong):
            events = RecordingEvents()
            with pytest.raises(TunekitError) as caught:
                trial.run(f"refused-{number}", events=events, **self.step_options(1), **option)
            (name,) = option
            assert isinstance(caught.value, CheckFailed) and name in str(caught.value), told(
                f"{option} ended with {type(caught.value).__name__}: {caught.value}",
                f"CheckFailed that names {name}",
                "an options model that lets unknown names pass (derive from tunekit.plugins.TrainOptions), or no model",
            )
            assert events.events == [] and not (trial.folder / f"refused-{number}").exists()

    # How they compare.

    def _close(self, left: Sequence[float], right: Sequence[float], what: str, mistake: str) -> None:
        assert list(left) == pytest.approx(list(right), rel=self.loss_tolerance, abs=1e-6), told(
            f"{what}: {shown_losses(left)} and {shown_losses(right)}",
            f"the same within {self.loss_tolerance:g} (loss_tolerance)",
            mistake,
        )

    def _continues(self, resumed: Trained, whole: Trained, at: int, when: str) -> None:
        begun = [event.global_step for event in resumed.logged]
        assert begun and begun[0] == at + 1, told(
            f"{when} the second run logged the steps {begun}",
            f"from {at + 1} on: the checkpoint of step {at} was reported as resumable",
            "checkpoints that hold weights only, or a trainer that does not look for them in ctx.dir",
        )
        expected = [(event.global_step, loss) for event, loss in zip(whole.logged, whole.losses, strict=True)]
        found = history_losses(resumed.step, self.loss_name)
        same_losses(
            [loss for _, loss in found],
            [loss for _, loss in expected],
            f"a run resumed {when} and one that was not interrupted",
            "a checkpoint without the state of the random generators (dropout shows it), of the optimizer, of the "
            "learning rate schedule, or of the place in the data",
        )
        assert found == expected
        assert resumed.weights_hash == whole.weights_hash, f"losses are the same {when}, but the weights are not"
