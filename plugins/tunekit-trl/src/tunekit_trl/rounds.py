"""Preference optimisation in rounds: the model's own completions, paired by rewards, learned, judged, kept or not."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import statistics
from collections.abc import Sequence
from typing import Any

from tunekit.plugins import Artifact, StepContext, hf
from tunekit_trl.borrowed import borrowed
from tunekit_trl.completion_rows import CompletionRows
from tunekit_trl.dpo import DpoTrainer
from tunekit_trl.measures import course
from tunekit_trl.objectives import REWARDS
from tunekit_trl.prompts import PromptRow, check_rewards
from tunekit_trl.reference import reference_logps

__all__ = ["IterativeDpoTrainer"]

PROBES = 4
_PAIRS = "pairs.json"
_AT_A_TIME = 64
"""Prompts that are completed and scored together."""


class IterativeDpoTrainer:
    """The component behind ``align(method="iterative-dpo")``."""

    def run(self, ctx: StepContext) -> Artifact:
        """Run the rounds, save the model of the last kept one, and prove the merge.

        Raises:
            DataError: for data without prompts, or a prompt that leaves no room for its completion.
            StepError: if a reward fails, or a merge is wrong.
            RunCancelled: after a cancel; finished rounds and a resumable checkpoint are left.
        """
        options = ctx.options
        check_rewards(ctx)
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        assert ctx.data is not None
        prompts, facts = hf.prompt_rows(
            ctx, ctx.data, tokenizer, hf.prompt_room(ctx.options, hf.model_facts(loaded.model))
        )
        held_out = hf.fixed_prompts(ctx.validation, options.eval_prompts)
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        hf.tell_dropout(ctx, model)
        with borrowed(model, tokenizer), hf.dropout_off(model):
            before = hf.start_samples(ctx, model, tokenizer, strict=True)
            work = _Round(model, tokenizer, prompts, first=ctx)
            rounds = hf.Rounds(
                ctx,
                model,
                tokenizer,
                held_out,
                update=work.update,
                rounds=options.rounds,
                keep_at=options.keep_at,
                max_new_tokens=options.max_new_tokens,
            )
            made = rounds.run()
            written = hf.compare_samples(ctx, model, tokenizer, before=before) if before else {}
            del rounds, work, before
            gc.collect()
        details = {
            "data": facts,
            "held_out_prompts": len(held_out),
            "rewards": [{"name": one.name, "weight": one.weight, "label": one.label} for one in ctx.rewards],
            "reference": "the model at the start of the round" if options.reference == "round" else "the input model",
            "beta": options.beta,
            "loss_type": options.loss_type,
            "rounds": list(made.rounds),
            **written,
        }
        probes = [row["prompt_ids"] for row in prompts[:PROBES]]
        if not made.kept and ctx.adapter is not None:
            # The adapter is as it was attached: it adds nothing, and there is no merge to prove.
            model, ctx = ctx.adapter.merge(model), dataclasses.replace(ctx, adapter=None)
        return hf.finish(
            ctx,
            model,
            tokenizer,
            outcome=made.outcome,
            probes=probes,
            details=details,
            metrics=made.metrics,
        )


class _Round:
    """Pairs of a round, and one training on them.

    Args:
        model: with its adapter if there is one, as the step starts from it.
        tokenizer: its tokenizer.
        prompts: what is completed.
        first: the step.
    """

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[PromptRow], *, first: StepContext) -> None:
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.start = hf.TrainedWeights(model) if first.options.reference == "start" else None
        self.start_hash = first.input_weights_hash

    def update(self, ctx: StepContext) -> tuple[hf.TrainOutcome | None, dict[str, Any]]:
        """Draw, score, pair, and learn; see :class:`tunekit.plugins.hf.Rounds`."""
        stored = self._stored(ctx)
        facts: dict[str, Any] = stored["facts"]
        rows = CompletionRows(("chosen", "rejected"))
        for number, chosen, rejected in stored["pairs"]:
            rows.add(self.prompts[number]["prompt_ids"], chosen, rejected)
        if not len(rows):
            return None, facts
        rows.set_column("margin", stored["margins"])
        dpo = DpoTrainer()
        trainer = hf.CompletionTrainer(ctx, self.model, self.tokenizer, rows, dpo.objective(ctx, rows))
        rows.set_reference(self._reference(ctx, trainer, rows))
        if self.start is None:
            dpo.ready(ctx, trainer)
        outcome = hf.train(ctx, trainer)
        facts = {**facts, **course(trainer.state.log_history, REWARDS)}
        del trainer
        gc.collect()
        return outcome, facts

    def _reference(self, ctx: StepContext, trainer: hf.CompletionTrainer, rows: CompletionRows) -> list[float]:
        # The adapter stays on: it is part of the model of the round before, and adds nothing at the start.
        with contextlib.ExitStack() as stack:
            weights = ctx.input_weights_hash
            if self.start is not None:
                stack.enter_context(self.start.on(self.model))
                weights = f"{self.start_hash} {self.start.digest()}"
            model = dataclasses.replace(ctx, adapter=None, input_weights_hash=weights)
            return reference_logps(model, trainer, rows.groups())

    # Pairs.

    def _stored(self, ctx: StepContext) -> dict[str, Any]:
        """The pairs of the round, from its folder where they were made before a kill."""
        path = ctx.dir / _PAIRS
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        made = self._pairs(ctx)
        with hf.storage_errors(path):
            aside = path.with_name(f"{path.name}.partial")
            aside.write_text(json.dumps(made), encoding="utf-8")
            aside.replace(path)
        return made

    def _pairs(self, ctx: StepContext) -> dict[str, Any]:
        pairs: list[tuple[int, list[int], list[int]]] = []
        margins: list[float] = []
        rewards: list[float] = []
        finished = tokens = 0
        for begin in range(0, len(self.prompts), _AT_A_TIME):
            ctx.cancel.raise_if_cancelled()
            ctx.progress(begin, len(self.prompts), "prompts", "completions")
            part = self.prompts[begin : begin + _AT_A_TIME]
            drawn = self._draw(ctx, part, begin)
            scores = self._scores(ctx, part, drawn)
            for at, (made, values) in enumerate(zip(drawn, scores, strict=True)):
                best, worst = values.index(max(values)), values.index(min(values))
                if values[best] > values[worst]:
                    pairs.append((begin + at, list(made[best].ids), list(made[worst].ids)))
                    margins.append(values[best] - values[worst])
                rewards += values
                finished += sum(one.finished for one in made)
                tokens += sum(len(one.ids) for one in made)
        facts = {
            "pairs": len(pairs),
            "ties": len(self.prompts) - len(pairs),
            "completions": len(rewards),
            "reward": statistics.fmean(rewards),
            "reward_std": statistics.pstdev(rewards),
            "finished": finished / len(rewards),
            "completion_length": tokens / len(rewards),
        }
        return {"pairs": pairs, "margins": margins, "facts": facts}

    def _draw(self, ctx: StepContext, part: Sequence[PromptRow], begin: int) -> list[list[hf.Sampled]]:
        options = ctx.options
        seed = hashlib.sha256(f"{ctx.seed} completions {begin}".encode()).digest()[:7]
        return hf.sample(
            self.model,
            self.tokenizer,
            [row["prompt_ids"] for row in part],
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            count=options.num_generations,
            seed=int.from_bytes(seed, "big"),
            cancel=ctx.cancel,
        )

    @staticmethod
    def _scores(
        ctx: StepContext, part: Sequence[PromptRow], drawn: Sequence[Sequence[hf.Sampled]]
    ) -> list[list[float]]:
        rows = [row for row, made in zip(part, drawn, strict=True) for _ in made]
        samples = [one for made in drawn for one in made]
        total = iter(hf.score_samples(ctx, rows, samples).total)
        return [[next(total) for _ in made] for made in drawn]
