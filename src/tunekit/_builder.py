"""The steps and settings of a pipeline: what can be chained, with its signature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, Self

from tunekit._secrets import refuse_passwords
from tunekit._tasks import choose_method, frozen_option
from tunekit._values import (
    STEP_KIND,
    UNSET,
    adapter,
    adapter_plan,
    check_name,
    given,
    lora,
    plan_value,
    qlora,
)
from tunekit.errors import PipelineError
from tunekit.plan import AdapterPlan, Plan, StepPlan, check_seed, free_name

if TYPE_CHECKING:
    import os

    from tunekit.session import Session

__all__ = ["Builder"]


class Builder:
    """Holds a plan; each method returns a new value with one more step or setting."""

    __slots__ = ("_objects", "_plan", "_session")
    _plan: Plan
    _objects: Mapping[str, Any]
    _session: Session | None

    def _with(self, plan: Plan, objects: Mapping[str, Any]) -> Self:
        new = object.__new__(type(self))
        object.__setattr__(new, "_plan", plan)
        object.__setattr__(new, "_objects", objects)
        object.__setattr__(new, "_session", self._session)
        return new

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a Pipeline cannot be changed; each method returns a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Pipeline cannot be changed; each method returns a new one")

    # ---------------------------------------------------------------- steps

    def pretrain(
        self,
        data: Any = UNSET,
        *,
        objective: str | None = None,
        method: str | None = None,
        limit: int | None = UNSET,
        epochs: float = UNSET,
        max_steps: int | None = UNSET,
        learning_rate: float = UNSET,
        batch_size: int = UNSET,
        gradient_accumulation: int = UNSET,
        max_length: int = UNSET,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Train a new model from random weights, with a tokenizer trained on the same text.

        Args:
            data: text: path, data set name, rows, or an object in memory. Default: embedded text, with a notice.
            objective: ``"causal"`` (each token from those before it; default) or ``"masked"`` (hidden words from both
                sides, for encoders).
            method: trainer, in place of ``objective``: ``"causal"``, ``"mlm"``, or one that a plugin provides.
            limit: use the first rows only.
            epochs: passes over the data; ``tokens=`` sets a number of training tokens instead.
            max_steps: optimizer steps in all; wins over ``epochs``.
            learning_rate: peak learning rate.
            batch_size: examples per device and micro-batch.
            gradient_accumulation: micro-batches per optimizer step.
            max_length: longest example in tokens.
            name: name of the step; default ``pretrain``.
            options: further options of the trainer; ``explain`` shows them, ``check`` refuses unknown ones.
        """
        return self._step(
            "pretrain",
            method=method,
            name=name,
            options={
                "data": data,
                "objective": UNSET if objective is None else objective,
                "limit": limit,
                "epochs": epochs,
                "max_steps": max_steps,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
                "max_length": max_length,
                **options,
            },
        )

    def post_pretrain(
        self,
        data: Any = UNSET,
        *,
        task: str | Mapping[str, Any] | None = None,
        objective: str | None = None,
        method: str | None = None,
        limit: int | None = UNSET,
        epochs: float = UNSET,
        max_steps: int | None = UNSET,
        learning_rate: float = UNSET,
        batch_size: int = UNSET,
        gradient_accumulation: int = UNSET,
        max_length: int = UNSET,
        adapter: AdapterPlan | str | None = UNSET,
        input: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Continue pretraining on plain text, or train the model for a task that is not generation.

        Args:
            data: text, or the task's rows: path, data set name, rows, or an object in memory. Default: embedded text,
                with a notice.
            task: ``"lm"`` (default), ``"classification"``, ``"ner"``, ``"regression"``, or several that share one body:
                a mapping of a name to a task, such as
                ``{"mood": {"task": "classification", "data": "a.tsv"}, "names": {"task": "ner", "data": "b.conll"}}``.
            objective: for ``"lm"``: ``"causal"`` (default) or ``"masked"`` (hidden words from both sides, for
                encoders).
            method: trainer, in place of ``task`` and ``objective``: ``"causal"``, ``"mlm"``, ``"classification"``,
                ``"ner"``, ``"regression"``, ``"multitask"``, or one that a plugin provides.
            limit: use the first rows only.
            epochs: passes over the data.
            max_steps: optimizer steps in all; wins over ``epochs``.
            learning_rate: peak learning rate.
            batch_size: examples per device and micro-batch.
            gradient_accumulation: micro-batches per optimizer step.
            max_length: longest example in tokens.
            adapter: this step's own adapter, such as ``lora(r=16)``; None: full training. Default: the pipeline's.
            input: name of the step to start from; default: the step before.
            name: name of the step; default ``post_pretrain``.
            options: further options of the trainer.

        Raises:
            PipelineError: if ``task`` or ``objective`` is unknown, or stands beside ``method``.
        """
        return self._step(
            "post_pretrain",
            method=method,
            adapter=adapter,
            input=input,
            name=name,
            options={
                "data": data,
                "task": UNSET if task is None else task,
                "objective": UNSET if objective is None else objective,
                "limit": limit,
                "epochs": epochs,
                "max_steps": max_steps,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
                "max_length": max_length,
                **options,
            },
        )

    def sft(
        self,
        data: Any = UNSET,
        *,
        method: str | None = None,
        limit: int | None = UNSET,
        epochs: float = UNSET,
        max_steps: int | None = UNSET,
        learning_rate: float = UNSET,
        batch_size: int = UNSET,
        gradient_accumulation: int = UNSET,
        max_length: int = UNSET,
        adapter: AdapterPlan | str | None = UNSET,
        input: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Supervised fine-tuning on prompts with answers, or on conversations.

        Args:
            data: path, data set name, rows, or an object in memory. Default: embedded instructions, with a notice.
            method: trainer; default ``"sft"``.
            limit: use the first rows only.
            epochs: passes over the data.
            max_steps: optimizer steps in all; wins over ``epochs``.
            learning_rate: peak learning rate.
            batch_size: examples per device and micro-batch.
            gradient_accumulation: micro-batches per optimizer step.
            max_length: longest example in tokens.
            adapter: this step's own adapter, such as ``lora(r=16)``; None: full training. Default: the pipeline's.
            input: name of the step to start from; default: the step before.
            name: name of the step; default ``sft``, then ``sft-2`` ...
            options: further options of the trainer.
        """
        return self._step(
            "sft",
            method=method,
            adapter=adapter,
            input=input,
            name=name,
            options={
                "data": data,
                "limit": limit,
                "epochs": epochs,
                "max_steps": max_steps,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
                "max_length": max_length,
                **options,
            },
        )

    def reward(
        self,
        data: Any = UNSET,
        *,
        method: str | None = None,
        limit: int | None = UNSET,
        epochs: float = UNSET,
        max_steps: int | None = UNSET,
        learning_rate: float = UNSET,
        batch_size: int = UNSET,
        gradient_accumulation: int = UNSET,
        max_length: int = UNSET,
        adapter: AdapterPlan | str | None = UNSET,
        input: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Train a reward model on pairs of a better and a worse answer, on ranked answers, or on ratings.

        It is a side branch: later ``align`` steps score with it, and every step after it goes on from the model before
        it, unless ``input=`` names the reward model.

        Args:
            data: path, data set name, rows, or an object in memory. Default: embedded pairs, with a notice.
            method: trainer; default ``"reward"``.
            limit: use the first rows only.
            epochs: passes over the data.
            max_steps: optimizer steps in all; wins over ``epochs``.
            learning_rate: peak learning rate.
            batch_size: pairs per device and micro-batch.
            gradient_accumulation: micro-batches per optimizer step.
            max_length: longest example in tokens.
            adapter: this step's own adapter, such as ``lora(r=16)``; None: full training. Default: the pipeline's.
            input: name of the step to start from; default: the step before.
            name: name of the step; default ``reward``.
            options: further options of the trainer.
        """
        return self._step(
            "reward",
            method=method,
            adapter=adapter,
            input=input,
            name=name,
            options={
                "data": data,
                "limit": limit,
                "epochs": epochs,
                "max_steps": max_steps,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
                "max_length": max_length,
                **options,
            },
        )

    def align(
        self,
        data: Any = UNSET,
        *,
        prompts: Any = UNSET,
        method: str | None = None,
        reward: Any = UNSET,
        rounds: int = UNSET,
        beta: float = UNSET,
        limit: int | None = UNSET,
        epochs: float = UNSET,
        max_steps: int | None = UNSET,
        learning_rate: float = UNSET,
        batch_size: int = UNSET,
        gradient_accumulation: int = UNSET,
        max_length: int = UNSET,
        adapter: AdapterPlan | str | None = UNSET,
        input: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Align a model with preferences, or with a reward. The reference model is the step's input model.

        Args:
            data: pairs of a chosen and a rejected answer, or what else the method learns from: path, data set name,
                rows, or an object in memory. Default: embedded rows, with a notice.
            prompts: another name for ``data``, for methods that learn from what the model writes itself; also a list
                of texts or of message lists.
            method: ``"dpo"`` (default, unless the data know better), or another that a plugin provides;
                ``"dist/name"`` names the plugin as well.
            reward: what scores the completions, for methods that need it: the name of a reward step before this one,
                the name of a reward (``"exact-match"``), a function ``(prompts, completions, **columns)``, a mapping
                with options (``{"name": "reward-model", "model": "folder/", "weight": 0.5}``), a list of these, or a
                mapping from names to weights. Default: the model of the nearest reward step before.
            rounds: how often to generate, score and update, for methods that go in rounds.
            beta: how strongly the model is held to its reference.
            limit: use the first rows only.
            epochs: passes over the data.
            max_steps: optimizer steps in all; wins over ``epochs``.
            learning_rate: peak learning rate.
            batch_size: pairs per device and micro-batch.
            gradient_accumulation: micro-batches per optimizer step.
            max_length: longest example in tokens.
            adapter: this step's own adapter, such as ``lora(r=16)``; None: full training. Default: the pipeline's.
            input: name of the step to start from; default: the step before.
            name: name of the step; default ``align``.
            options: further options of the trainer.
        """
        return self._step(
            "align",
            method=method,
            adapter=adapter,
            input=input,
            name=name,
            options={
                "data": data,
                "prompts": prompts,
                "reward": reward,
                "rounds": rounds,
                "beta": beta,
                "limit": limit,
                "epochs": epochs,
                "max_steps": max_steps,
                "learning_rate": learning_rate,
                "batch_size": batch_size,
                "gradient_accumulation": gradient_accumulation,
                "max_length": max_length,
                **options,
            },
        )

    def merge(
        self, *, method: str | None = None, input: str | None = None, name: str | None = None, **options: Any
    ) -> Self:
        """Fold the adapter of an adapter-trained step into its base, as a step of its own.

        Adapter-trained steps are merged by themselves; this is for options that a plugin offers for merging.
        """
        return self._step("merge", method=method, input=input, name=name, options=options)

    def quantize(
        self,
        scheme: str,
        *,
        method: str | None = None,
        group_size: int = UNSET,
        data: Any = UNSET,
        input: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Make the model smaller.

        Args:
            scheme: width of the weights, such as ``"int4"`` or ``"int8"``.
            method: quantizer; default ``"gptq"``.
            group_size: weights that share a scale.
            data: calibration data, for quantizers that take their own. Default: data of the training steps before.
            input: name of the step to start from; default: the step before.
            name: name of the step; default ``quantize``.
            options: further options of the quantizer.
        """
        return self._step(
            "quantize",
            method=method,
            input=input,
            name=name,
            options={"scheme": scheme, "group_size": group_size, "data": data, **options},
        )

    def evaluate(
        self,
        benchmarks: str | Iterable[str],
        data: str | os.PathLike[str] | Mapping[str, Any] = UNSET,
        *,
        limit: int | None = UNSET,
        method: str | None = None,
        input: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Measure the model.

        Args:
            benchmarks: names, such as ``["mmlu", "gsm8k"]``.
            data: folder with one sub-folder per benchmark, in its publisher's own file format; ``"hub"``; or a mapping
                from each benchmark to its own. Default: the small samples that come with the benchmarks, whose scores
                are not comparable with published ones.
            limit: use the first questions of each benchmark only.
            method: what runs the benchmarks; default ``"evaluate"``.
            input: name of the step whose model is measured; default: the step before.
            name: name of the step; default ``evaluate``.
            options: further options of the evaluator.
        """
        names = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
        return self._step(
            "evaluate",
            method=method,
            input=input,
            name=name,
            options={"benchmarks": names, "data": data, "limit": limit, **options},
        )

    def export(self, format: str, *, input: str | None = None, name: str | None = None, **options: Any) -> Self:
        """Write the model in another format, such as ``"gguf"``."""
        return self._step("export", method=format, input=input, name=name, options=options)

    def step(
        self,
        kind: str,
        *,
        method: str | None = None,
        adapter: AdapterPlan | str | None = UNSET,
        input: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """A step of a kind that a plugin provides, such as ``step("distill", teacher=...)``.

        Args:
            kind: name of the step kind; ``"dist/name"`` names the plugin as well.
            method: for kinds of tunekit's own: which component does it.
            adapter: this step's own adapter; None: full training. Default: the pipeline's.
            input: name of the step to start from; default: the step before.
            name: name of the step; default: the kind.
            options: options of the step.
        """
        return self._step(kind, method=method, adapter=adapter, input=input, name=name, options=options)

    def _step(
        self,
        kind: str,
        *,
        options: Mapping[str, Any],
        method: str | None = None,
        adapter: AdapterPlan | str | None = UNSET,
        input: str | None = None,
        name: str | None = None,
    ) -> Self:
        passed = given(options)
        # Before anything else is said of them.
        own = {"kind": kind, "method": method, "input": input, "name": name}
        refuse_passwords({**own, **passed}, of=name if isinstance(name, str) else str(kind))
        # Reserved words that a method does not name itself; the rules of check() say why they do not fit.
        adapter = passed.pop("adapter", adapter)
        input = passed.pop("input", input)
        if not isinstance(kind, str) or not STEP_KIND.fullmatch(kind):
            raise PipelineError(f"{kind!r} is no step kind.", code="step-kind", fix='step("distill", ...)')
        taken = {step.name for step in self._plan.steps}
        name = free_name(kind, taken) if name is None else name
        check_name("name", name)
        if name in taken:
            raise PipelineError(
                f"There are two steps called {name!r}.",
                code="step-name",
                asked=f"{kind}(name={name!r})",
                found=f"steps: {', '.join(step.name for step in self._plan.steps)}",
                fix="give one of them another name=, or none",
            )
        if input is not None:
            check_name("input", input)
        method = choose_method(kind, method, passed)
        if method is not None and not isinstance(method, str):
            raise PipelineError(f"{kind}: method is text, not {method!r}.", code="step-method")
        objects = dict(self._objects)
        frozen = {key: frozen_option(kind, name, key, value, objects) for key, value in passed.items()}
        step = StepPlan(
            kind=kind, name=name, method=method, options=frozen, input=input, adapter=adapter_plan(name, adapter)
        )
        return self._with(self._plan.with_step(step), objects)

    # ---------------------------------------------------------------- settings

    def lora(
        self,
        r: int = UNSET,
        alpha: float = UNSET,
        dropout: float = UNSET,
        targets: str | Sequence[str] = UNSET,
        **options: Any,
    ) -> Self:
        """Fine-tune through LoRA: a setting that holds for ``post_pretrain``, ``sft``, ``reward`` and ``align``.

        It holds wherever it stands in the chain. ``pretrain`` is always full. A step's own ``adapter=`` wins.

        Args:
            r: rank of the update; default 8.
            alpha: the update is scaled by ``alpha / r``; default ``2 * r``.
            dropout: dropout on the adapter's input; default 0.
            targets: ``"all-linear"`` (default) or names of linear layers.
            options: further options of the adapter.

        Raises:
            PipelineError: if an adapter is already set.
        """
        return self._set_adapter(lora(r, alpha, dropout, targets, **options))

    def qlora(
        self,
        r: int = UNSET,
        alpha: float = UNSET,
        dropout: float = UNSET,
        targets: str | Sequence[str] = UNSET,
        **options: Any,
    ) -> Self:
        """Fine-tune through LoRA over a 4-bit base. A setting, with the arguments of :meth:`lora`."""
        return self._set_adapter(qlora(r, alpha, dropout, targets, **options))

    def adapter(self, name: str, **options: Any) -> Self:
        """Fine-tune through any adapter by name. A setting, like :meth:`lora`."""
        return self._set_adapter(adapter(name, **options))

    def _set_adapter(self, plan: AdapterPlan) -> Self:
        old = self._plan.adapter
        if old is not None:
            from tunekit._chain import adapter_text

            raise PipelineError(
                "The adapter is set twice. lora(), qlora() and adapter() are settings of the whole pipeline: they hold "
                "for every fine-tuning step, wherever they stand in the chain.",
                code="adapter-twice",
                asked=adapter_text(plan),
                found=adapter_text(old),
                fix=f"for one step only, write it there: sft(adapter={adapter_text(plan)})",
            )
        return self._with(replace(self._plan, adapter=plan), self._objects)

    def track(self, name: str, **options: Any) -> Self:
        """Send the events of the run to a tracker that a plugin provides. A setting; may be given more than once."""
        if not isinstance(name, str) or not name:
            raise PipelineError("A tracker needs a name.", asked=repr(name), fix='track("tensorboard")')
        refuse_passwords({"track": name, **given(options)}, of="a tracker")
        tracker = {"name": name, **{key: plan_value(f"track.{key}", value) for key, value in given(options).items()}}
        return self._with(replace(self._plan, trackers=(*self._plan.trackers, tracker)), self._objects)

    def seed(self, seed: int) -> Self:
        """Seed of the whole run; ``run(seed=...)`` wins. A setting."""
        check_seed(seed)
        if self._plan.seed is not None and self._plan.seed != seed:
            raise PipelineError(
                f"The seed is set twice: {self._plan.seed} and {seed}.", code="seed-twice", fix="keep one of them"
            )
        return self._with(replace(self._plan, seed=seed), self._objects)
