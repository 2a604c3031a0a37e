"""Training in rounds: update the model, compare it with the round before on held-out prompts, keep or roll back."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tunekit.errors import ArtifactError, DataError, OptionsError, StepError
from tunekit.plugins.hf.callback import _distributed
from tunekit.plugins.hf.samples import draw_samples, kl_between, win_rate
from tunekit.plugins.hf.training import TrainOutcome, trained_in_float32
from tunekit.storage import publish, read_json, storage_errors, weights_digest, write_json

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["RoundState", "Rounds", "RoundsOutcome", "TrainedWeights"]

Row = Mapping[str, Any]
Update = Callable[["StepContext"], tuple[TrainOutcome | None, Mapping[str, Any]]]

_RECORD, _WEIGHTS = "round.json", "weights.safetensors"
_BROKEN = ("nan-loss", "nan-logits")
"""Errors of an update that went astray: the round is lost, the step is not."""


@dataclass(frozen=True, kw_only=True)
class RoundsOutcome:
    """What came out of all rounds."""

    outcome: TrainOutcome
    """Steps, tokens and seconds of all rounds added up, for :func:`tunekit.plugins.hf.finish`."""
    rounds: tuple[Mapping[str, Any], ...]
    """A record of each round, as in the artifact's details; see :class:`Rounds`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """``rounds``, ``rounds_kept``; ``reward_before`` (of the start) and ``reward_after`` (of the last kept round),
    means over the held-out prompts, each by the draws of its own round; ``win_rate`` of the last kept round."""

    @property
    def kept(self) -> int:
        """How many rounds were kept; 0: the model is as it was at the start."""
        return sum(bool(one["kept"]) for one in self.rounds)


class RoundState(Protocol):
    """What a training carries from round to round besides weights, such as an adaptive coefficient."""

    def state_dict(self) -> Mapping[str, Any]:
        """It, in JSON types."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back what :meth:`state_dict` gave."""


class TrainedWeights:
    """A copy of the weights of a model that are trained.

    Args:
        model: its parameters that require a gradient are copied, to where they are.
    """

    def __init__(self, model: Any) -> None:
        self.values = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    def digest(self) -> str:
        """SHA-256 (hex) over names, types and bytes."""
        import torch

        digest = hashlib.sha256()
        for name, value in sorted(self.values.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()

    def restore(self, model: Any) -> None:
        """Put them back on the model, bit for bit."""
        own = dict(model.named_parameters())
        for name, value in self.values.items():
            own[name].data = value.to(own[name].device, copy=True)

    @contextlib.contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """In the context the model computes with them. Nothing is copied where they are on one device."""
        own = dict(model.named_parameters())
        now = {name: own[name].data for name in self.values}
        try:
            for name, value in self.values.items():
                own[name].data = value.to(own[name].device, own[name].dtype)
            yield
        finally:
            for name, value in now.items():
                own[name].data = value


class Rounds:
    """Several rounds of generate, score and update, each judged against the one before.

    A round hands the model to ``update``. After it, old and new model complete the held-out prompts at temperature 1
    with the same random numbers, and the step's rewards score both. With a win rate (a tie is half a win) of at least
    ``keep_at`` the new weights stay. Otherwise the weights that are trained are put back, bit for bit, and the user is
    told; so they are where the loss or the logits of the update are not finite. With the weights go those of all of
    ``trained``, and ``state``: a round that is not kept leaves nothing behind. The optimizer begins anew each round.

    A finished round is kept below ``ctx.dir / "checkpoints" / "rounds"``, so that a step that was killed goes on with
    the round it was in, and within it from the newest checkpoint; it ends as if it had not been.

    The record of a round holds ``round`` (from 1), ``kept``, ``steps``, ``reward_before``, ``reward_after``,
    ``win_rate`` (see :func:`tunekit.plugins.hf.win_rate`), ``kl`` (to the round before, see
    :func:`tunekit.plugins.hf.kl_between`), what ``update`` says of it, and ``problem`` where it was lost. A ``problem``
    that ``update`` itself gives loses the round: nothing is compared, and the weights are put back.

    Args:
        ctx: the step. It has rewards.
        model: a causal model, with its adapter if there is one. Its weights are changed in place.
        tokenizer: its tokenizer.
        held_out: prompts as :func:`tunekit.plugins.hf.prompt_row` gives them.
        update: makes the round's update, as ``update(part)``. ``part`` is a context for this round: with a folder, a
            seed and an ``input_weights_hash`` of its own, and optimizer steps counted on from the round before. Gives
            what :func:`tunekit.plugins.hf.train` gave, or None where there was nothing to learn, and further facts for
            the record.
        rounds: how many.
        keep_at: lowest win rate that is kept.
        max_new_tokens: longest completion of a held-out prompt.
        trained: the module whose trained weights are kept or put back, where ``model`` is a part of it, as a policy is
            of policy and value head. None: ``model``.
        state: what is kept or put back with them; None: nothing.

    Raises:
        DataError: without held-out prompts.
        OptionsError: in several processes.
    """

    def __init__(
        self,
        ctx: StepContext,
        model: Any,
        tokenizer: Any,
        held_out: Sequence[Row],
        *,
        update: Update,
        rounds: int,
        keep_at: float = 0.5,
        max_new_tokens: int,
        trained: Any = None,
        state: RoundState | None = None,
    ) -> None:
        if not held_out:
            raise DataError(
                "Rounds are judged on held-out prompts, and there are none.",
                code="no-held-out-prompts",
                fix="hold some out: validation=0.1",
            )
        if _distributed() is not None:
            raise OptionsError(
                "Rounds run in one process only.",
                code="one-process",
                asked=f"rounds={rounds} in several processes",
                fix="start one process",
            )
        self.ctx, self.model, self.tokenizer, self.update = ctx, model, tokenizer, update
        self.held_out, self.rounds, self.keep_at = list(held_out), rounds, keep_at
        self.max_new_tokens = max_new_tokens
        self.trained = model if trained is None else trained
        self.state = state
        self.folder = ctx.dir / "checkpoints" / "rounds"
        self.number = 0
        """The round that is under way, from 1; 0: none yet."""

    def run(self) -> RoundsOutcome:
        """Run the rounds that are not finished yet. The model has the weights of the last kept one afterwards.

        Raises:
            StepError: if a reward fails.
            RunCancelled: after a cancel; what was reached is on disk.
            ArtifactError: if the disk is full or cannot be written.
        """
        trained_in_float32(self.trained)
        done = self._finished()
        resumed = sum(int(one["steps"]) for one in done) if done else None
        while len(done) < self.rounds:
            self.ctx.cancel.raise_if_cancelled()
            made, continued = self._round(len(done) + 1, done)
            resumed = continued if resumed is None else resumed
            done.append(made)
        return _gathered(done, resumed)

    # A round.

    def _round(self, number: int, done: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], int | None]:
        self.number = number
        before = sum(int(one["steps"]) for one in done)
        folder = self.folder / f"{number}.partial"
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        previous = TrainedWeights(self.trained)
        held = None if self.state is None else dict(self.state.state_dict())
        part = self._part(number, before, folder, previous)
        record: dict[str, Any] = {"round": number, "kept": False, "steps": 0}
        outcome: TrainOutcome | None = None
        try:
            old = self._draw(part, "held-out prompts before")
            outcome, facts = self.update(part)
            record |= facts
            if outcome is None:
                record.setdefault("problem", "there was nothing to learn")
            else:
                record["steps"] = outcome.global_step
            if outcome is not None and "problem" not in record:
                new = self._draw(part, "held-out prompts after")
                assert old.scores is not None and new.scores is not None
                won = win_rate(old.scores.total, new.scores.total)
                record |= {
                    "reward_before": won["reward_before"],
                    "reward_after": won["reward_after"],
                    "win_rate": won,
                    "kl": kl_between(
                        self.model,
                        lambda: previous.on(self.trained),
                        new.prompts,
                        [one.ids for one in new.completions],
                        cancel=part.cancel,
                    ),
                    "kept": won["value"] >= self.keep_at,
                }
        except StepError as error:
            # The very first draw is of a model that no update has touched.
            if error.code not in _BROKEN or (error.code == "nan-logits" and outcome is None):
                raise
            record["problem"] = error.message
        if outcome is not None:
            record["outcome"] = {key: value for key, value in outcome.metrics.items() if key != "tokens_per_second"}
        if not record["kept"]:
            previous.restore(self.trained)
            if self.state is not None and held is not None:
                self.state.load_state_dict(held)
            self._tell(record)
        self._log(part, record, outcome)
        self._store(number, folder, record, done)
        at = outcome.resumed_from_step if outcome is not None else None
        return record, None if at is None else before + at

    def _part(self, number: int, steps: int, folder: Path, weights: TrainedWeights) -> StepContext:
        ctx = self.ctx

        def emit(kind: str, **values: Any) -> None:
            if kind in ("metrics", "checkpoint"):
                values["global_step"] += steps
            elif kind == "progress":
                label = values.get("label")
                values["label"] = f"round {number} of {self.rounds}" + (f": {label}" if label else "")
            ctx._emit(kind, **values)

        seed = hashlib.sha256(f"{ctx.seed} round {number}".encode()).digest()[:4]
        return dataclasses.replace(
            ctx,
            dir=folder,
            seed=int.from_bytes(seed, "big"),
            input_weights_hash=hashlib.sha256(f"{ctx.input_weights_hash} {weights.digest()}".encode()).hexdigest(),
            _emit=emit,
        )

    def _draw(self, part: StepContext, label: str) -> Any:
        part.progress(0, None, "samples", label)
        made = draw_samples(part, self.model, self.tokenizer, self.held_out, max_new_tokens=self.max_new_tokens)
        if not made.rows:
            raise DataError(
                "No held-out prompt leaves the model a position to write to.",
                code="no-held-out-prompts",
                fix="give shorter prompts as validation=...",
            )
        return made

    def _tell(self, record: Mapping[str, Any]) -> None:
        number = record["round"]
        if "problem" in record:
            self.ctx.notice(
                "round-lost",
                f"Round {number} of {self.rounds} changed nothing: {record['problem'].rstrip('.')}. The weights are "
                "those of the round before.",
            )
            return
        won = record["win_rate"]
        self.ctx.notice(
            "round-rolled-back",
            f"Round {number} of {self.rounds} was rolled back: against the round before, the new model wins "
            f"{won['value']:.1%} of {won['n']} held-out prompts (95% interval {won['ci_low']:.1%} to "
            f"{won['ci_high']:.1%}), less than keep_at={self.keep_at:g}; mean reward {won['reward_before']:.4g} to "
            f"{won['reward_after']:.4g}.",
        )

    @staticmethod
    def _log(part: StepContext, record: Mapping[str, Any], outcome: TrainOutcome | None) -> None:
        if outcome is None or "win_rate" not in record:
            return
        # Where all steps of the round were done before a kill, this takes the place of what the last one logged.
        lost = outcome.resumed_from_step == outcome.global_step and "loss" in outcome.metrics
        part.metrics(
            outcome.global_step,
            {
                **({"loss": float(outcome.metrics["loss"])} if lost else {}),
                "round": float(record["round"]),
                "round/win_rate": float(record["win_rate"]["value"]),
                "round/reward_before": float(record["reward_before"]),
                "round/reward_after": float(record["reward_after"]),
                "round/kl": float(record["kl"]["per_sequence"]),
                "round/kept": float(record["kept"]),
            },
        )

    # On disk.

    def _store(self, number: int, folder: Path, record: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> None:
        from safetensors.torch import save_file

        with storage_errors(folder):
            digest = None
            if record["kept"]:
                values = {name: value.cpu().contiguous() for name, value in TrainedWeights(self.trained).values.items()}
                save_file(values, folder / _WEIGHTS)
                digest = weights_digest(folder)
            kept: dict[str, Any] = {"schema": 1, "digest": digest, "record": record}
            if record["kept"] and self.state is not None:
                kept["state"] = dict(self.state.state_dict())
            write_json(folder / _RECORD, kept)
            publish(folder, self.folder / str(number))
        self._tidy([*done, record])

    def _tidy(self, done: Sequence[Mapping[str, Any]]) -> None:
        """Weights of the last kept round stay, and no checkpoint and no other folder of a finished one."""
        last = max((int(one["round"]) for one in done if one["kept"]), default=0)
        for one in done:
            folder = self.folder / str(one["round"])
            for inner in folder.glob("*/"):
                shutil.rmtree(inner, ignore_errors=True)
            if one["round"] != last:
                (folder / _WEIGHTS).unlink(missing_ok=True)

    def _finished(self) -> list[dict[str, Any]]:
        """Records of the finished rounds; the model gets the weights of the last kept one."""
        done: list[dict[str, Any]] = []
        digest = state = None
        first = None if self.state is None else dict(self.state.state_dict())
        try:
            while len(done) < self.rounds and (folder := self.folder / str(len(done) + 1)).is_dir():
                stored = read_json(folder / _RECORD)
                done.append(stored["record"])
                digest = stored["digest"] or digest
                state = stored.get("state", state)
            if self.state is not None and state is not None:
                self.state.load_state_dict(state)
            self._load(done, digest)
        except (ArtifactError, OSError, KeyError, TypeError, ValueError) as error:
            self.ctx.notice("damaged-round", f"Finished rounds cannot be used, and all begin anew: {error}")
            if self.state is not None and first is not None:
                self.state.load_state_dict(first)
            with storage_errors(self.folder):
                shutil.rmtree(self.folder)
            return []
        self._tidy(done)
        return done

    def _load(self, done: Sequence[Mapping[str, Any]], digest: str | None) -> None:
        from safetensors.torch import load_file

        last = max((int(one["round"]) for one in done if one["kept"]), default=0)
        if not last:
            return
        folder = self.folder / str(last)
        if weights_digest(folder) != digest:
            raise ValueError(f"the weights of round {last} were changed.")
        weights = TrainedWeights(self.trained)
        stored = load_file(folder / _WEIGHTS)
        if {name: value.shape for name, value in stored.items()} != {
            name: value.shape for name, value in weights.values.items()
        }:
            raise ValueError(f"the weights of round {last} are those of another model.")
        weights.values = stored
        weights.restore(self.trained)


def _gathered(done: Sequence[Mapping[str, Any]], resumed: int | None) -> RoundsOutcome:
    parts = [one["outcome"] for one in done if "outcome" in one]
    steps = sum(int(one["steps"]) for one in done)
    metrics: dict[str, Any] = {"steps": steps}
    for name in ("epochs", "tokens", "seconds"):
        metrics[name] = sum(part.get(name, 0) for part in parts)
    losses = [part for part in parts if "loss" in part]
    if losses:
        weights = [part["steps"] for part in losses]
        total = sum(part["loss_mean"] * weight for part, weight in zip(losses, weights, strict=True))
        metrics |= {
            "loss": losses[-1]["loss"],
            "loss_first": losses[0]["loss_first"],
            "loss_mean": total / max(sum(weights), 1),
        }
    measured: dict[str, float] = {"rounds": len(done), "rounds_kept": sum(bool(one["kept"]) for one in done)}
    judged = [one for one in done if "win_rate" in one]
    kept = [one for one in judged if one["kept"]]
    if judged:
        measured["reward_before"] = judged[0]["reward_before"]
        measured["reward_after"] = kept[-1]["reward_after"] if kept else judged[0]["reward_before"]
    if kept:
        measured["win_rate"] = kept[-1]["win_rate"]["value"]
    records = [{key: value for key, value in one.items() if key != "outcome"} for one in done]
    return RoundsOutcome(
        outcome=TrainOutcome(global_step=steps, max_steps=steps, metrics=metrics, resumed_from_step=resumed),
        rounds=tuple(records),
        metrics=measured,
    )
