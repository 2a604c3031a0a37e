"""Learning from completions that the model writes itself, scored by rewards: GRPO, RLOO, online DPO.

Completions are drawn by :func:`tunekit.plugins.hf.sample`, which computes a prompt once for all of its completions; so
does the update (:class:`tunekit.plugins.hf.CompletionTrainer`). The losses are those of TRL's trainers, which the tests
compare them with.
"""

from __future__ import annotations

import copy
import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from tunekit.errors import RunCancelled, StepError
from tunekit.plugins import Artifact, StepContext, hf
from tunekit_trl.borrowed import borrowed
from tunekit_trl.measures import course
from tunekit_trl.online_losses import (
    GrpoObjective,
    OnlineDpoObjective,
    OnlineObjective,
    RlooObjective,
    Rollout,
)
from tunekit_trl.prompts import PromptRow, check_rewards
from tunekit_trl.reference import check_start
from tunekit_trl.together import refuse_sharded, together

__all__ = ["GrpoTrainer", "OnlineDpoTrainer", "OnlineTrainer", "RlooTrainer"]

PROBES = 4
EVAL_PROMPTS = 64
"""Held-out prompts that are completed together."""
_SILENT_STEPS = 10
"""Steps without any difference between rewards after which the user is told."""

_UNMEASURED = "unmeasured"
"""File in a checkpoint that was left while held-out prompts were completed."""
_Made = TypeVar("_Made")

_MEASURED = ("reward", "reward_std", "kl", "entropy", "completion_length", "finished", "frac_reward_zero_std")


class _Online:
    """What the three components share."""

    objective: type[Any]

    def run(self, ctx: StepContext) -> Artifact:
        """Write, score, update; save, and prove the merge.

        Raises:
            DataError: for data without prompts, or a prompt that leaves no room for its completion.
            StepError: if a reward fails, for a loss that is not finite, or a merge that is wrong.
            RunCancelled: after a cancel; a resumable checkpoint is left.
        """
        options = ctx.options
        check_rewards(ctx)
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        room = hf.prompt_room(options, hf.model_facts(loaded.model))
        rows, facts = hf.prompt_rows(ctx, ctx.data, tokenizer, room)
        held_out = hf.prompt_rows(ctx, ctx.validation, tokenizer, room)[0] if ctx.validation is not None else None
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        hf.tell_dropout(ctx, model)
        with borrowed(model, tokenizer), hf.dropout_off(model):
            trainer = OnlineTrainer(ctx, model, tokenizer, rows, self.objective(options), held_out)
            before = hf.start_samples(ctx, model, tokenizer, strict=True)
            outcome = hf.train(ctx, trainer)
            history = trainer.state.log_history
            measured: dict[str, Any] = course(history, [*_MEASURED, *(f"rewards/{one.name}" for one in ctx.rewards)])
            measured |= _rise(history)
            details = trainer.facts()
            del trainer
            gc.collect()
            details |= hf.compare_samples(ctx, model, tokenizer, before=before)
            del before
        return hf.finish(
            ctx,
            model,
            tokenizer,
            outcome=outcome,
            probes=[row["prompt_ids"] for row in rows[:PROBES]],
            details={"data": facts, **details},
            metrics=measured,
        )


class GrpoTrainer(_Online):
    """The component behind ``align(method="grpo")``."""

    objective = GrpoObjective


class RlooTrainer(_Online):
    """The component behind ``align(method="rloo")``."""

    objective = RlooObjective


class OnlineDpoTrainer(_Online):
    """The component behind ``align(method="online-dpo")``."""

    objective = OnlineDpoObjective


class OnlineTrainer(hf.CompletionTrainer):
    """A :class:`tunekit.plugins.hf.CompletionTrainer` whose rows are prompts: each optimizer step completes its own.

    With ``num_iterations`` above 1 the completions serve that many steps one after the other; they are part of the
    checkpoint, so that a training that is continued goes on with the same ones. Random numbers depend on the seed, the
    optimizer step and the process alone.

    A cancel is seen while completions are written, too: a checkpoint is left then. An error in one process ends all.
    """

    def __init__(
        self,
        ctx: StepContext,
        model: Any,
        tokenizer: Any,
        rows: Sequence[PromptRow],
        objective: OnlineObjective,
        held_out: Sequence[PromptRow] | None = None,
    ) -> None:
        super().__init__(ctx, model, tokenizer, rows, objective, held_out)
        refuse_sharded(self, ctx.step.component.name)
        self.online = objective
        self.tokenizer = tokenizer
        self.completions.temperature = ctx.options.temperature
        self._uses = int(getattr(ctx.options, "num_iterations", 1))
        if self._uses > 1:
            self._batches: Any = _Repeated(self._batches, self.args.gradient_accumulation_steps, self._uses)
        self._window = -1
        self._written: list[list[dict[str, Any]]] = []
        self._resumed: str | None = None
        """After a resume, whose completions the checkpoint has."""
        self._unmeasured = False
        self._silent = 0
        self._told = False
        self._reference: Any = None
        self._reference_completions: Any = None
        if objective.needs_ref and ctx.adapter is None:
            self._reference = copy.deepcopy(self.accelerator.unwrap_model(model)).eval().requires_grad_(False)
            probes = [objective.group(row) for row in rows[:8]]
            self._reference_completions = hf.CompletionModel(
                self._reference, probes, temperature=ctx.options.temperature
            )

    def facts(self) -> dict[str, Any]:
        """For the artifact."""
        ctx, options = self._ctx, self._ctx.options
        made: dict[str, Any] = {
            "rewards": [{"name": one.name, "weight": one.weight, "label": one.label} for one in ctx.rewards],
            "num_generations": options.num_generations,
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "shared_prompts": self.completions.shares,
            "beta": options.beta,
        }
        if self.online.needs_ref:
            made["reference"] = "the step's input model" + (", adapter off" if ctx.adapter else "")
        if hasattr(options, "loss_type"):
            made["loss_type"] = options.loss_type
        return made

    # Completions of an optimizer step.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, completed and scored."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if not batches:
            return super().get_batch_samples(iter(()), 0, device)
        if self._unmeasured:
            self._unmeasured = False
            self.evaluate()
        window, turn = divmod(self.state.global_step, self._uses)
        if self._resumed is not None:
            if turn:
                self._agreed(lambda: self._check_window(window))
            self._resumed = None
        if turn == 0 or self._window != window:
            self._written = self._write(batches, window)
            self._window = window
        return super().get_batch_samples(iter(self._written), len(self._written), device)

    def _write(self, batches: Sequence[Sequence[PromptRow]], window: int) -> list[list[dict[str, Any]]]:
        rollouts = self._agreed(lambda: self._completed([row for batch in batches for row in batch], window))
        if self.online.needs_ref and self.state.global_step == 0:
            away = [value for one in rollouts for value in one.sums(one.old - one.ref)]
            scale = max(abs(value) for one in rollouts for value in one.sums(one.ref))
            check_start(self._ctx, self, away, max(1.0, scale))
        learned = self.online.rows(rollouts, lambda values: self._everywhere(values, 0)[0])
        at, made = 0, []
        for batch in batches:
            made.append(learned[at : at + len(batch)])
            at += len(batch)
        return made

    def _completed(self, rows: Sequence[PromptRow], window: int) -> list[Rollout]:
        """Completions with rewards, and the log-probabilities that the loss needs beforehand."""
        rollouts = [self.online.choose(rollout) for rollout in self._rollouts(rows, window)]
        first = self.state.global_step == 0
        model = self.accelerator.unwrap_model(self.model)
        groups = [rollout.group for rollout in rollouts]
        if self.online.needs_old or (self.online.needs_ref and first):
            for rollout, values in zip(rollouts, self._logps(model, self.completions, groups), strict=True):
                rollout.old = values
        if self.online.needs_ref:
            for rollout, values in zip(rollouts, self._reference_logps(model, groups), strict=True):
                rollout.ref = values
        return rollouts

    def _agreed(self, work: Callable[[], _Made], *, measuring: bool = False) -> _Made:
        """What ``work`` gives, ended for all processes by an error or a cancel in one; see :func:`together`.

        Raises:
            RunCancelled: after a cancel; a checkpoint is left.
            StepError: code ``other-process`` if only another process failed.
        """
        try:
            return together(work, self.args.world_size, "completions were written or scored")
        except RunCancelled as cancel:
            raise self._cancelled(measuring) from cancel

    def _cancelled(self, measuring: bool) -> RunCancelled:
        """Leave a checkpoint: no optimizer step is under way while completions are written."""
        ctx, step, folder = self._ctx, self.state.global_step, Path(self.args.output_dir)
        if step and (measuring or hf.good_checkpoint(folder)[0] != folder / f"checkpoint-{step}"):
            self._unmeasured = measuring
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return RunCancelled(
            f"The run was cancelled in step {ctx.step.name!r} after optimizer step {step} of {self.state.max_steps}: "
            f"{ctx.cancel.reason}.",
            fix="run the same pipeline again in the same workdir to continue",
            details={
                "step": ctx.step.name,
                "global_step": step,
                "checkpoint": str(folder / f"checkpoint-{step}") if step else None,
            },
        )

    def _tell(self, phase: str) -> None:
        if self.is_world_process_zero():
            self._ctx.progress(self.state.global_step, self.state.max_steps, "steps", phase)

    def _rollouts(self, rows: Sequence[PromptRow], window: int) -> list[Rollout]:
        options, count = self._ctx.options, self._ctx.options.num_generations
        wanted = [row for row in rows if row.get("counts", True)]
        self._tell("writing")
        written = iter(
            hf.sample(
                self.accelerator.unwrap_model(self.model),
                self.tokenizer,
                [row["prompt_ids"] for row in wanted],
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                count=count,
                seed=self._seed(window),
                cancel=self._ctx.cancel,
            )
        )
        samples = {number: next(written) for number, row in enumerate(rows) if row.get("counts", True)}
        rewards = iter(self._scored(wanted, [one for made in samples.values() for one in made]))
        rollouts = []
        for number, row in enumerate(rows):
            if number not in samples:
                ids = row["prompt_ids"][:1]
                rollouts.append(Rollout(row["prompt_ids"], [ids] * count, [True] * count, [0.0] * count, counts=False))
                continue
            drawn = samples[number]
            rollouts.append(
                Rollout(
                    row["prompt_ids"],
                    [list(made.ids) for made in drawn],
                    [made.finished for made in drawn],
                    [next(rewards) for _ in drawn],
                )
            )
        self._measure([rollout for rollout in rollouts if rollout.counts])
        return rollouts

    def _scored(self, rows: Sequence[PromptRow], samples: Sequence[hf.Sampled]) -> list[float]:
        """Rewards of the completions of each row, one after the other; they are noted for the log."""
        if not samples:
            for one in self._ctx.rewards:
                self._note(f"rewards/{one.name}", 0.0, 0.0)
            return []
        self._tell("scoring")
        scores = self._scores(rows, samples)
        for name, values in scores.by_name.items():
            known = [value for value in values if value is not None]
            self._note(f"rewards/{name}", sum(known), len(known))
        penalty = self._ctx.options.missing_eos_penalty or 0.0
        return [reward - penalty * (not made.finished) for reward, made in zip(scores.total, samples, strict=True)]

    def _scores(self, rows: Sequence[PromptRow], samples: Sequence[hf.Sampled]) -> hf.RewardScores:
        each = len(samples) // len(rows)
        return hf.score_samples(self._ctx, [row for row in rows for _ in range(each)], samples)

    def _measure(self, rollouts: Sequence[Rollout]) -> None:
        rewards = [reward for rollout in rollouts for reward in rollout.rewards]
        spreads = [float(torch.tensor(rollout.rewards, dtype=torch.float64).std()) for rollout in rollouts]
        equal = sum(max(rollout.rewards) == min(rollout.rewards) for rollout in rollouts)
        self._note("reward", sum(rewards), len(rewards))
        self._note("reward_std", sum(spreads), len(spreads))
        self._note("frac_reward_zero_std", equal, len(rollouts))
        self._note("completion_length", sum(len(c) for one in rollouts for c in one.completions), len(rewards))
        self._note("finished", sum(ended for one in rollouts for ended in one.finished), len(rewards))
        if rollouts:
            self._silent = self._silent + 1 if equal == len(rollouts) else 0
        if self._silent >= _SILENT_STEPS and not self._told:
            self._told = True
            self._ctx.notice(
                "no-difference",
                f"For {self._silent} generations on end all completions of each prompt had equal rewards, so nothing "
                "is learned: the prompts may be too hard or too easy for the model, or the reward too coarse.",
            )

    def _note(self, name: str, summed: float, count: float) -> None:
        # A name that another process lacks would upset the sums over all of them.
        if count or self.args.world_size > 1:
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + summed, before[1] + count)

    def _seed(self, window: int) -> int:
        text = f"{self._ctx.seed} {window} {self.args.process_index}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    # Log-probabilities of tokens.

    def _logps(
        self, model: Any, completions: hf.CompletionModel, groups: Sequence[hf.PromptGroup]
    ) -> list[torch.Tensor]:
        """For each group, (tokens of all its completions,) float32 on the CPU; no gradient, dropout off."""
        was_training = model.training
        model.eval()
        found: list[Any] = [None] * len(groups)
        try:
            with completions.attending(), torch.no_grad():
                for numbers in completions.pieces(groups):
                    self._ctx.cancel.raise_if_cancelled()
                    part = [groups[number] for number in numbers]
                    with self.compute_loss_context_manager():
                        made = completions(model, part).logps.float().cpu()
                    sizes = [sum(map(len, group.completions)) for group in part]
                    for number, values in zip(numbers, made.split(sizes), strict=True):
                        found[number] = values.clone()
        finally:
            model.train(was_training)
        return found

    def _reference_logps(self, model: Any, groups: Sequence[hf.PromptGroup]) -> list[torch.Tensor]:
        if self._reference is not None:
            return self._logps(self._reference, self._reference_completions, groups)
        adapter = self._ctx.adapter
        assert adapter is not None
        with adapter.detached(model):
            return self._logps(model, self.completions, groups)

    def _loss_of(self, model: Any, rows: Any, totals: Mapping[str, float] | None = None) -> hf.ObjectiveLoss:
        totals = self._totals if totals is None else totals
        with self.compute_loss_context_manager():
            logps = self.completions(model, [self.online.group(row) for row in rows], entropy=True)
        return self._with_routing(self.online.loss(logps, rows, totals), logps, rows, totals)

    # Held-out prompts.

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean reward of the likeliest completions of held-out prompts, as ``eval_reward``. ``eval_loss`` is that
        with the opposite sign, so that the lowest is the best here, too."""
        held_out = self.eval_dataset if eval_dataset is None else eval_dataset
        rows: Sequence[PromptRow] = [held_out[number] for number in range(len(held_out))]
        own = rows[self.args.process_index :: self.args.world_size]
        sums = self._agreed(lambda: self._held_out_sums(own), measuring=True)
        sums = self._everywhere(sums, 0)[0]
        count = max(sums.pop("count"), 1.0)
        metrics = {f"{metric_key_prefix}_{name}": value / count for name, value in sums.items()}
        metrics[f"{metric_key_prefix}_loss"] = -metrics[f"{metric_key_prefix}_reward"]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_sums(self, rows: Sequence[PromptRow]) -> dict[str, float]:
        """Sums over held-out rows."""
        sums = dict.fromkeys(("reward", "completion_length", "finished"), 0.0) | {"count": float(len(rows))}
        penalty = self._ctx.options.missing_eos_penalty or 0.0
        # Nothing could be continued after the last step.
        last = self.state.global_step >= self.state.max_steps
        for begin in range(0, len(rows), EVAL_PROMPTS):
            part = rows[begin : begin + EVAL_PROMPTS]
            self._tell("validating")
            drawn = hf.sample(
                self.accelerator.unwrap_model(self.model),
                self.tokenizer,
                [row["prompt_ids"] for row in part],
                max_new_tokens=self._ctx.options.max_new_tokens,
                temperature=0.0,
                cancel=None if last else self._ctx.cancel,
            )
            samples = [made[0] for made in drawn]
            totals = self._scores(part, samples).total
            sums["reward"] += sum(totals) - penalty * sum(not made.finished for made in samples)
            sums["completion_length"] += sum(len(made.ids) for made in samples)
            sums["finished"] += sum(made.finished for made in samples)
        return sums

    # Completions in checkpoints.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with hf.storage_errors(folder):
            if self._uses > 1:
                folder.mkdir(parents=True, exist_ok=True)
                kept = {"window": self._window, "batches": self._written, "process": self._process()}
                torch.save(kept, folder / self._rollout_file())
            if self._unmeasured and self.is_world_process_zero():
                (folder / _UNMEASURED).touch()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._unmeasured = (Path(checkpoint) / _UNMEASURED).is_file()
        path = Path(checkpoint) / self._rollout_file()
        if self._uses > 1:
            kept = torch.load(path, weights_only=True) if path.is_file() else {}
            self._resumed = f"completions of {kept['process']}" if kept else f"no {path.name}"
            if kept and kept["process"] == self._process():
                self._window, self._written = int(kept["window"]), kept["batches"]

    def _check_window(self, window: int) -> None:
        """Raises:
        StepError: between two updates from the same completions, if the checkpoint does not have them.
        """
        if self._window != window:
            raise StepError(
                "The checkpoint lacks the completions that this process was learning from.",
                code="completions-missing",
                asked=f"completions of {self._process()}, window {window}",
                found=f"{self._resumed}, window {self._window}" if self._window >= 0 else str(self._resumed),
                fix=f"continue with as many processes as before, or delete {self.args.output_dir} and run again",
                details={"step": self._ctx.step.name, "global_step": self.state.global_step},
            )

    def _process(self) -> str:
        return f"process {self.args.process_index} of {self.args.world_size}"

    def _rollout_file(self) -> str:
        return f"completions-{self.args.process_index}.pt"


class _Repeated:
    """Batches of an epoch with those of each optimizer step several times on end."""

    def __init__(self, batches: Any, accumulation: int, times: int) -> None:
        self._inner, self._accumulation, self._times = batches, accumulation, times

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._inner.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._inner) // self._accumulation) * self._accumulation * self._times

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(self._inner)
        for begin in range(0, len(batches), self._accumulation):
            step = batches[begin : begin + self._accumulation]
            # Whole steps: otherwise the last one of an epoch and its repetitions would run into each other.
            row = step[0][0]
            step += [[row if row < 0 else ~row]] * (self._accumulation - len(step))
            for _ in range(self._times):
                yield from step


def _rise(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean reward over the first and the last quarter of the steps that wrote completions."""
    rewards = [float(row["reward"]) for row in history if "reward" in row]
    if not rewards:
        return {}
    quarter = max(1, len(rewards) // 4)
    return {
        "reward_first_quarter": sum(rewards[:quarter]) / quarter,
        "reward_last_quarter": sum(rewards[-quarter:]) / quarter,
    }
