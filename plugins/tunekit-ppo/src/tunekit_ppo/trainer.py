"""The loop of PPO inside a ``transformers.Trainer``: one optimizer step is one minibatch of a rollout."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from tunekit.errors import RunCancelled, StepError
from tunekit.plugins import StepContext, hf
from tunekit_ppo.actor_critic import ActorCritic, Outputs
from tunekit_ppo.advantages import advantages_of, explained_variance, kl_of, token_rewards, whiten
from tunekit_ppo.losses import policy_loss, value_loss
from tunekit_ppo.prompts import PromptOrder
from tunekit_ppo.rollouts import Rollout, grouped
from tunekit_ppo.schedule import Share, planned_steps, updates_of
from tunekit_ppo.state import Carried, load_weights, trained_weights

__all__ = ["PpoTrainer"]

WEIGHTS = "trained.safetensors"
"""File in a checkpoint with the weights that are trained."""
WITHIN = "within.safetensors"
"""File with the trained weights of the last rollout within ``stop_kl``."""

# Rounding of a log-probability, nats: pieces of other rows are computed together.
_NOISE, _HALF_NOISE = 2e-3, 0.2
_PER_TOKEN = Outputs._fields[:3]
_FARTHEST = 20.0
"""Largest log-ratio that is exponentiated."""


class PpoTrainer(Trainer):
    """Writes, scores, and learns. Give it to :func:`tunekit.plugins.hf.train`.

    What happens in an optimizer step follows from its number, the seed, and the rollout, which is kept in every
    checkpoint: a training that is continued is the one that was interrupted.

    Args:
        ctx: the step.
        model: policy and value head.
        tokenizer: that of the policy.
        prompts: what is asked; rows of :func:`tunekit.plugins.hf.prompt_rows`.
        reference: the model the step starts from, frozen; None: the policy with its adapter off.
        share: the part of the step that this training is; None: all of it.
        carried: what goes on from an earlier part, and is changed in place; None: it begins here.
    """

    control: Any

    def __init__(
        self,
        ctx: StepContext,
        model: ActorCritic,
        tokenizer: Any,
        prompts: Sequence[Mapping[str, Any]],
        reference: Any = None,
        *,
        share: Share | None = None,
        carried: Carried | None = None,
    ) -> None:
        options = ctx.options
        share = Share(0, planned_steps(options, len(prompts))) if share is None else share
        carried = Carried(options) if carried is None else carried
        steps = share.steps
        arguments = hf.training_arguments(
            TrainingArguments,
            ctx,
            options,
            max_steps=steps,
            adam_epsilon=options.adam_epsilon,
            remove_unused_columns=False,
            dataloader_num_workers=0,
            # Ratios of probabilities do not survive the range of float16.
            fp16=False,
        )
        if arguments.world_size > 1:
            raise StepError(
                "PPO runs in one process.",
                code="one-process",
                found=f"{arguments.world_size} processes",
                fix="start one process, or align with a method that runs in several, such as grpo",
            )
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=list(range(steps * options.gradient_accumulation)),
            data_collator=list,
            processing_class=tokenizer,
            callbacks=[hf.TunekitCallback(ctx), _BeforeUpdate(self)],
        )
        self._ctx, self._options, self._tokenizer = ctx, options, tokenizer
        self.prompts, self.reference = prompts, reference
        self._prompt_ids = [prompt["prompt_ids"] for prompt in prompts]
        probes = [hf.PromptGroup(ids, [ids[-1:] * 2]) for ids in self._prompt_ids[:8]]
        self._policy = hf.CompletionModel(model.policy, probes, temperature=options.temperature)
        self._critic = None if model.critic is None else hf.CompletionModel(model.critic, probes)
        self._reference = (
            None if reference is None else hf.CompletionModel(reference, probes, temperature=options.temperature)
        )
        self._order = PromptOrder(len(prompts), ctx.seed)
        self.updates = updates_of(options)
        self.begin = share.begin
        """Rollouts of the step before those of this training."""
        self.rollout: Rollout | None = None
        self.carried = carried
        self.kl, self.scale = carried.kl, carried.scale
        self.within = ctx.dir / WITHIN
        """File with the trained weights of the last rollout within ``stop_kl``."""
        self.rollouts: list[dict[str, float]] = []
        """Numbers about each rollout so far."""
        self.skipped = 0
        """Optimizer steps that were left out because of ``update_kl``."""
        self.ended: str = ""
        """Why training ended before its last step; empty: it did not."""
        self.undone: str = ""
        """Why the updates of the last rollout were taken back after the last step; empty: they were not."""
        self.final_kl: float | None = None
        """With ``stop_kl``, the divergence of the model that is handed on, nats per completion."""
        self._sums: dict[str, list[Any]] = {}
        self._minibatch: list[list[int]] = []
        self._tokens = 1

    # What the Trainer is given.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Numbers of micro-batches; what they hold is decided when they are due."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=self.data_collator)

    def create_optimizer(self, model: Any = None) -> Any:
        """With ``value_learning_rate``, the value head is a parameter group of its own."""
        if self.optimizer is None:
            super().create_optimizer() if model is None else super().create_optimizer(model)
            rate = self._options.value_learning_rate
            if rate is not None:
                head = list(self.model.value_head.parameters())
                known = {id(parameter) for parameter in head}
                optimizer: Any = self.optimizer
                for group in optimizer.param_groups:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
                optimizer.add_param_group({"params": head, "lr": rate, "weight_decay": 0.0})
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, and its completion tokens. Writes a rollout where one is due."""
        for _, _ in zip(range(num_batches), epoch_iterator, strict=False):
            pass
        done, update = divmod(self.state.global_step, self.updates)
        index = self.begin + done
        if self.rollout is None or self.rollout.index != index:
            self.rollout = self._write(index)
        if self.ended:
            # Nothing more is learned; the step that the Trainer is in ends without an update.
            return [[]] * num_batches, torch.tensor(0, device=device)
        options = self._options
        size = options.batch_size * options.gradient_accumulation
        self._minibatch = self.rollout.minibatches(update, size, options.batch_size, self._ctx.seed)
        if self.rollout.stopped:
            self.skipped += 1
            return [[]] * num_batches, torch.tensor(0, device=device)
        self._tokens = sum(self.rollout.tokens(part) for part in self._minibatch)
        if update == 0:
            self._note(**{name: (value, 1) for name, value in self.rollout.facts.items()})
        return list(self._minibatch), torch.tensor(self._tokens, device=device)

    # Writing and scoring.

    def _draw(self, index: int) -> tuple[list[int], list[Any]]:
        """Completions of a rollout, and for each the number of its prompt."""
        ctx, options = self._ctx, self._options
        asked = options.rollout_size // options.num_generations
        numbers = self._order.numbers(index * asked, asked)
        ctx.progress(self.state.global_step, self.state.max_steps, "steps", "writing")
        try:
            # In the precision in which the completions are learned: another one would be another policy.
            with self.accelerator.autocast():
                written = hf.sample(
                    self.model.policy,
                    self._tokenizer,
                    [self._prompt_ids[number] for number in numbers],
                    max_new_tokens=options.max_new_tokens,
                    temperature=options.temperature,
                    count=options.num_generations,
                    seed=_seed(ctx.seed, index),
                    cancel=ctx.cancel,
                )
        except RunCancelled as error:
            raise self._cancelled() from error
        of = [number for number in numbers for _ in range(options.num_generations)]
        return of, [completion for completions in written for completion in completions]

    def _write(self, index: int) -> Rollout:
        options = self._options
        of, made = self._draw(index)
        ids = [list(completion.ids) for completion in made]
        finished = [completion.finished for completion in made]
        total, by_name = self._scores(of, made)
        lengths = [len(completion) for completion in ids]
        now = self._measure(self.model.policy, self._policy, of, ids, values=True)
        before = self._reference_logps(of, ids)
        log_ratio = now.logps - before
        kl = kl_of(log_ratio, options.kl_estimator)
        if index == 0 and self.state.global_step == 0:
            self._check_start(log_ratio)
        coefficient = self.kl.coefficient
        worth = self._worth(total, finished)
        rewards = token_rewards(worth, kl, lengths, coefficient)
        if options.whiten_rewards:
            rewards = whiten(rewards, shift=False)
        advantages, returns = advantages_of(rewards, now.values, lengths, options.gamma, options.lam)
        mean_kl = _per_completion(log_ratio, lengths)
        facts = {
            "reward": _mean(total),
            "reward_std": float(torch.tensor(total, dtype=torch.float64).std(unbiased=False)),
            **{f"rewards/{name}": value for name, value in by_name.items()},
            "kl": mean_kl,
            "kl_per_token": float(log_ratio.double().mean()),
            "kl_coef": coefficient,
            "objective": _mean(worth) - coefficient * float(kl.double().sum()) / len(lengths),
            "entropy": float(now.entropy.double().mean()),
            "completion_length": _mean(lengths),
            "finished": _mean(finished),
            "explained_variance": explained_variance(now.values, returns),
            "value": float(now.values.double().mean()),
        }
        self.rollouts.append(facts)
        self.kl.update(mean_kl, len(lengths))
        self._look_at_distance(index, mean_kl)
        if options.whiten_advantages:
            advantages = whiten(advantages)
        return Rollout(
            index=index,
            prompts=of,
            completions=ids,
            logps=now.logps,
            values=now.values,
            advantages=advantages.float(),
            returns=returns.float(),
            facts=facts,
        )

    def _scores(self, of: Sequence[int], made: Sequence[hf.Sampled]) -> tuple[list[float], dict[str, float]]:
        """Weighted score of each completion, and the mean of each reward."""
        self._ctx.progress(self.state.global_step, self.state.max_steps, "steps", "scoring")
        scores = hf.score_samples(self._ctx, [self.prompts[number] for number in of], made)
        means = {name: scores.mean(name) for name in scores.by_name}
        return scores.total, {name: value for name, value in means.items() if value is not None}

    def _worth(self, scores: Sequence[float], finished: Sequence[bool]) -> list[float]:
        """Scores as they are learned from."""
        options = self._options
        made = list(scores)
        if options.scale_scores:
            self.scale.update(made)
            made = self.scale.scaled(made)
        if options.clip_scores is not None:
            made = [min(max(score, -options.clip_scores), options.clip_scores) for score in made]
        if options.unfinished_score is not None:
            made = [score if ended else options.unfinished_score for score, ended in zip(made, finished, strict=True)]
        if options.eos_penalty is not None:
            made = [
                score if ended else score - options.eos_penalty for score, ended in zip(made, finished, strict=True)
            ]
        return made

    def _reference_logps(self, of: Sequence[int], ids: Sequence[list[int]]) -> Any:
        adapter = self._ctx.adapter
        if self.reference is not None:
            return self._measure(self.reference, self._reference, of, ids).logps
        assert adapter is not None
        with adapter.detached(self.model.policy):
            return self._measure(self.model.policy, self._policy, of, ids).logps

    def _measure(
        self, model: Any, puts: Any, of: Sequence[int], ids: Sequence[list[int]], values: bool = False
    ) -> Outputs:
        """Over all completions, in order, float32 on the CPU; no gradient."""
        groups, members = grouped(self._prompt_ids, ids, range(len(ids)), of)
        found: dict[str, list[Any]] = {name: [None] * len(ids) for name in _PER_TOKEN}
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for part in puts.pieces(groups):
                    numbers = [number for place in part for number in members[place]]
                    made = self._outputs(
                        [groups[place] for place in part], model=model, puts=puts, values=values, entropy=values
                    )
                    sizes = [len(ids[number]) for number in numbers]
                    for name, whole in zip(_PER_TOKEN, made, strict=False):
                        if whole is None:
                            continue
                        for number, piece in zip(numbers, whole.float().cpu().split(sizes), strict=True):
                            found[name][number] = piece
        finally:
            self.model.train(training)
        return Outputs(*(torch.cat(parts) if parts[0] is not None else None for parts in found.values()))

    def _outputs(self, groups: Sequence[Any], *, model: Any, puts: Any, values: bool, entropy: bool) -> Outputs:
        shared = self._critic is None
        with self.accelerator.autocast(), puts.attending():
            made = puts(model, groups, hidden=values and shared, entropy=entropy)
        if not values:
            return Outputs(made.logps, None, made.entropy, made.routing)
        hidden, routing = made.hidden, made.routing
        if self._critic is not None:
            with self.accelerator.autocast(), self._critic.attending():
                judged = self._critic(self.model.critic, groups, hidden=True)
            hidden = judged.hidden
            routing = judged.routing if routing is None else routing + judged.routing
        return Outputs(made.logps, self.model.value(hidden), made.entropy, routing)

    def _check_start(self, log_ratio: Any) -> None:
        """Before the first update the policy is the reference."""
        worst = float(log_ratio.abs().max())
        half = self.args.bf16 or "16" in str(next(self.model.policy.parameters()).dtype)
        if not worst <= (_HALF_NOISE if half else _NOISE):
            raise StepError(
                "The reference is not the model this step starts from: before the first update they differ.",
                code="reference-mismatch",
                asked="log-ratios of 0",
                found=f"a log-ratio of {worst:.4g}",
                details={"step": self._ctx.step.name, "log_ratio": worst},
            )

    def _cancelled(self) -> RunCancelled:
        """Leave a checkpoint: no optimizer step is under way while completions are written."""
        ctx, step = self._ctx, self.state.global_step
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        if step and self.rollout is not None and hf.good_checkpoint(Path(self.args.output_dir))[0] != folder:
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return RunCancelled(
            f"The run was cancelled in step {ctx.step.name!r} after optimizer step {step} of {self.state.max_steps}: "
            f"{ctx.cancel.reason}.",
            fix="run the same pipeline again in the same workdir to continue",
            details={"step": ctx.step.name, "global_step": step, "checkpoint": str(folder) if step else None},
        )

    def _look_at_distance(self, index: int, kl: float) -> None:
        limit = self._options.stop_kl
        if limit is None:
            return
        if kl <= limit or index == self.begin:
            self._keep_weights()
            return
        self.ended = self._taken_back(index, kl)
        self.final_kl = self.rollouts[-2]["kl"]
        self._ctx.notice(
            "early-stop",
            f"Training ended after {self.state.global_step} of {self.state.max_steps} steps: {self.ended}. The model "
            "of the rollout before is handed on.",
        )

    def _taken_back(self, index: int, kl: float) -> str:
        """Put back the weights of the last rollout within ``stop_kl``; what is said of that. ``index``: rollouts that
        were learned from."""
        limit = self._options.stop_kl
        if index == self.begin + 1:
            raise StepError(
                "The first rollout already takes the model beyond stop_kl, so there is no model within it.",
                code="kl-bound",
                asked=f"at most {limit:g} nats per completion",
                found=f"{kl:.3g} nats per completion",
                fix="lower learning_rate or ppo_epochs, raise kl_coef, or raise stop_kl",
                details={"step": self._ctx.step.name, "kl": kl},
            )
        load_weights(self.model, self.within)
        return f"the KL divergence to the reference is {kl:.3g} nats per completion, above stop_kl={limit:g}"

    def settle(self) -> None:
        """After the last step: with ``stop_kl``, measure once more, on completions of the trained model, and hand on
        the model before the last rollout where the trained one is beyond it.

        Raises:
            StepError: code ``kl-bound``, if there was one rollout only.
            RunCancelled: after a cancel.
        """
        limit, rollout = self._options.stop_kl, self.rollout
        if limit is None or rollout is None or self.ended:
            return
        index = rollout.index + 1
        of, made = self._draw(index)
        ids = [list(completion.ids) for completion in made]
        now = self._measure(self.model.policy, self._policy, of, ids)
        kl = _per_completion(now.logps - self._reference_logps(of, ids), [len(one) for one in ids])
        self.final_kl = kl
        if not kl <= limit:
            self.undone = self._taken_back(index, kl)
            self.final_kl = self.rollouts[-1]["kl"]
            self._ctx.notice(
                "kl-bound",
                f"After the last step {self.undone}. The updates of the last rollout are taken back: the model that "
                f"wrote it, at {self.final_kl:.3g} nats per completion, is handed on.",
            )

    def _keep_weights(self) -> None:
        path = self.within
        aside = path.with_name(path.name + ".partial")
        with hf.storage_errors(path):
            path.parent.mkdir(exist_ok=True)
            save_file(trained_weights(self.model), aside)
            aside.replace(path)

    # Learning.

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradient of a micro-batch; its share of the optimizer step's loss."""
        total = torch.zeros((), device=self.args.device)
        if not inputs:
            return total
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        assert self.rollout is not None
        groups, members = grouped(self._prompt_ids, self.rollout.completions, inputs, self.rollout.prompts)
        for part in self._policy.pieces(groups):
            numbers = [number for place in part for number in members[place]]
            # Activations are computed again in the backward pass, if at all, with the same attention.
            with contextlib.ExitStack() as stack:
                for puts in (self._policy, self._critic):
                    if puts is not None:
                        stack.enter_context(puts.attending())
                loss = self._loss([groups[place] for place in part], numbers)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss(self, groups: Sequence[Any], numbers: Sequence[int]) -> torch.Tensor:
        options, rollout = self._options, self.rollout
        assert rollout is not None
        bonus = options.entropy_coef > 0
        made = self._outputs(
            groups, model=self.model.policy, puts=self._policy, values=options.value_coef > 0, entropy=bonus
        )
        device = made.logps.device
        old, advantages = (rollout.take(name, numbers, device) for name in ("logps", "advantages"))
        policy = policy_loss(made.logps, old, advantages, options.clip_range)
        loss = policy.loss
        tokens = len(old)
        log_ratio = (made.logps.detach() - old).clamp(-_FARTHEST, _FARTHEST)
        ratio = log_ratio.exp()
        noted = {
            "policy_loss": (policy.loss.detach(), tokens),
            "clip_fraction": (policy.clipped, tokens),
            "ratio": (ratio.sum(), tokens),
            "update_kl": ((torch.expm1(log_ratio) - log_ratio).sum(), tokens),
        }
        if options.value_coef > 0:
            seen, returns = (rollout.take(name, numbers, device) for name in ("values", "returns"))
            value = value_loss(made.values, seen, returns, options.clip_range_value)
            loss = loss + options.value_coef * value.loss
            noted |= {
                "value_loss": (value.loss.detach(), tokens),
                "value_clip_fraction": (value.clipped, tokens),
            }
        if bonus:
            loss = loss - options.entropy_coef * made.entropy.sum()
        if made.routing is not None:
            loss = loss + tokens * made.routing
            noted["router_loss"] = (tokens * made.routing.detach(), tokens)
        self._note(**noted)
        return loss / self._tokens

    def _note(self, **values: tuple[Any, float]) -> None:
        for name, (summed, count) in values.items():
            before = self._sums.setdefault(name, [0.0, 0.0])
            before[0], before[1] = before[0] + summed, before[1] + count

    def look_before_update(self) -> None:
        """Leave the update out, and what is left of the rollout, once the policy is too far from the one that wrote."""
        limit = self._options.update_kl
        rollout = self.rollout
        if limit is None or rollout is None or rollout.stopped or "update_kl" not in self._sums:
            return
        summed, count = self._sums["update_kl"]
        if float(summed) / count > limit:
            rollout.stopped = True
            self.skipped += 1
            # Without gradients an optimizer changes nothing, its moments neither.
            self.model.zero_grad(set_to_none=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what was measured; an optimizer step without an update is not logged."""
        if "loss" in logs:
            if not self._sums:
                return
            logs.update({name: float(summed) / count for name, (summed, count) in self._sums.items()})
            self._sums = {}
            asked = self._options.rollout_size // self._options.num_generations
            index = self.state.global_step - 1
            self.state.epoch = (index // self.updates + 1) * asked / len(self.prompts)
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as ``transformers.Trainer.train``."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(hf.fused_low_rank(self.model))
            for model in (self.model, self.reference):
                if model is not None:
                    stack.enter_context(hf.fast_products(model))
            return super().train(*args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> float:
        """Not counted: going through all modules for it costs more than a small step."""
        return 0.0

    # Checkpoints.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_weights(self.model), folder / WEIGHTS)
        if self.rollout is not None:
            self.rollout.save(
                folder,
                {
                    **self.carried.state_dict(),
                    "rollouts": self.rollouts,
                    "skipped": self.skipped,
                },
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_weights(self.model, folder / WEIGHTS)
        self.rollout, state = Rollout.load(folder)
        self.carried.load_state_dict(state)
        self.rollouts = list(state["rollouts"])
        self.skipped = int(state["skipped"])


class _BeforeUpdate(TrainerCallback):
    """Looks at what an optimizer step has measured before it is made, and ends training when there is no more."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.look_before_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.trainer.ended:
            control.should_training_stop = True
            control.should_save = False
        return control


def _per_completion(log_ratio: Any, lengths: Sequence[int]) -> float:
    """Mean over the completions of their summed log-ratio."""
    return float(torch.stack([part.sum() for part in log_ratio.double().split(list(lengths))]).mean())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _seed(seed: int, index: int) -> int:
    """Seed of a rollout's completions."""
    return (seed * 1_000_003 + index * 7_919 + 1) % 2**62
