"""What a step scores completions with: the option ``reward`` bound to components, and the rewards of a run."""

from __future__ import annotations

import copy
import hashlib
import math
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit._analysis import Analysis, StepAnalysis, validated
from tunekit._registry import Entry
from tunekit._reward_callables import callable_digest, fitted, is_reward, name_of, signature_of
from tunekit.context import BoundReward
from tunekit.errors import OptionsError, PluginError, StepError, TunekitError, nearest
from tunekit.plan import ResolvedReward, free_name, thaw
from tunekit.plugins.specs import RewardSpec, TrainerSpec
from tunekit.session import OBJECT, Session

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.data import Dataset
    from tunekit.plugins.protocols import LoadedModel

__all__ = [
    "STEP",
    "bind_rewards",
    "bound_rewards",
    "fitted_rewards",
    "missing_columns",
    "needed_columns",
    "own_options",
    "reward_keys",
    "start_rewards",
    "step_references",
]

STEP = "step:"
"""Prefix of references to the model of an earlier step."""

_WHOLE_FILE = 64 * 2**20
"""Bytes up to which a file that an option names counts with its content, and above with its size and time."""

_Item = tuple[str, float, dict[str, Any]]
"""Name or reference, weight, options."""


# ---------------------------------------------------------------- while a plan is bound


def own_options(analysis: Analysis, step: StepAnalysis) -> dict[str, Any]:
    """The options that the trainer itself is given. ``reward`` is not among them, unless it has a field for it."""
    given: dict[str, Any] = thaw(step.plan.options)
    if "reward" in given and step.entry is not None and isinstance(step.entry.spec, TrainerSpec):
        try:
            model = analysis.session.options_model(step.entry.component)
        except TunekitError:
            return given  # said where the options are validated
        if "reward" not in getattr(model, "model_fields", {}):
            del given["reward"]
    return given


def bind_rewards(analysis: Analysis, step: StepAnalysis) -> None:
    """Bind the option ``reward`` of a step, noting what is wrong with it."""
    if step.entry is None or not isinstance(step.entry.spec, TrainerSpec):
        return
    given = step.plan.options.get("reward")
    if not step.entry.spec.rewards:
        if given is not None and "reward" not in own_options(analysis, step):
            _not_taken(analysis, step)
        return
    if given is not None:
        try:
            items = list(_items(thaw(given)))
        except OptionsError as error:
            analysis.add_error(step.name, error)
            return
        for item in items:
            _bind(analysis, step, *item)
        if items:
            return
    elif "reward" not in step.plan.options:
        models = [other for other in analysis.steps[: step.index - 1] if other.kind == "reward"]
        if models:
            _bind_step(analysis, step, models[-1], 1.0, {})
            return
    if step.entry.spec.rewards == "required":
        known = ", ".join(analysis.session.registry.names("reward")) or "none are installed"
        analysis.add(
            "error",
            step.name,
            "no-reward",
            f"{step.entry.component.id} learns from the scores of what the model writes, and step {step.name} has no "
            "reward: no reward step stands before it, and it names none.",
            f"add .reward(data=...) before it, or write {step.kind}(reward=...): one of {known}, or a function",
            option="reward",
        )


def _not_taken(analysis: Analysis, step: StepAnalysis) -> None:
    assert step.entry is not None
    others = sorted(
        entry.component.name
        for entry in analysis.session.components("trainer")
        if entry.component.stage == step.kind and isinstance(entry.spec, TrainerSpec) and entry.spec.rewards
    )
    analysis.add(
        "error",
        step.name,
        "reward-not-taken",
        f"{step.entry.component.id} does not score what a model writes, so the reward would not be used.",
        f"leave reward= out, or use a method that scores ({', '.join(others)})" if others else "leave reward= out",
        option="reward",
    )


def _items(given: Any) -> Iterator[_Item]:
    """The rewards of the option, in order.

    Raises:
        OptionsError: if it has another form.
    """
    if isinstance(given, str):
        yield given, 1.0, {}
    elif isinstance(given, Mapping) and "name" in given:
        yield _single(given)
    elif isinstance(given, Mapping) and "weight" not in given:
        for name, value in given.items():
            if isinstance(value, Mapping):
                yield _single({**value, "name": name})
            else:
                yield str(name), _weight(name, value), {}
    elif isinstance(given, Sequence):
        for item in given:
            yield from _items(item)
    else:
        raise _form(given)


def _single(given: Mapping[str, Any]) -> _Item:
    options = dict(given)
    name = options.pop("name")
    if not isinstance(name, str) or not name:
        raise _form(given)
    return name, _weight(name, options.pop("weight", 1.0)), options


def _weight(name: Any, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionsError(
            f"The weight of the reward {name!r} is {value!r}, not a finite number.",
            code="reward-weight",
            fix='reward={"exact-match": 1.0, "format": 0.2}',
            details={"option": "reward"},
        )
    return float(value)


def _form(given: Any) -> OptionsError:
    return OptionsError(
        f"{given!r:.80} names no reward.",
        code="reward-form",
        fix='reward="name", a function, {"name": ..., "weight": ..., options}, a list of these, or {name: weight, ...}',
        details={"option": "reward"},
    )


def _bind(analysis: Analysis, step: StepAnalysis, name: str, weight: float, options: dict[str, Any]) -> None:
    if name.startswith(OBJECT):
        _bind_callable(analysis, step, name, weight, options)
        return
    earlier = analysis.steps[: step.index - 1]
    named = next((other for other in analysis.steps if other.name == name), None)
    if named is not None and named.kind == "reward":
        if named not in earlier:
            which = "itself" if named is step else f"{name!r}, which comes later"
            analysis.add(
                "error",
                step.name,
                "reward-later",
                f"Step {step.name} would be scored by {which}.",
                f"put {name} before {step.name}",
                asked=name,
            )
            return
        _bind_step(analysis, step, named, weight, options)
        return
    try:
        entry = analysis.session.registry.find("reward", name)
    except TunekitError as error:
        if error.code == "unknown-reward":
            steps = [other.name for other in earlier if other.kind == "reward"]
            if close := nearest(name, steps):
                error.suggestions, error.fix = close, f"write {close[0]!r}"
            if named is not None:
                error.message += f" Step {name} trains no reward model."
            elif "/" in name or Path(name).expanduser().exists():
                error.suggestions = ()
                error.fix = f'a model that scores: {{"name": "reward-model", "model": {name!r}}}'
        analysis.add_error(step.name, error)
        return
    _, values = validated(analysis, step.name, f"reward {name}", entry, options, None)
    if values is None:
        return
    scoring = values.get("model")
    source = None
    if isinstance(scoring, str) and scoring.startswith(STEP):
        source = scoring.removeprefix(STEP)
        if not any(other.name == source and other.makes_model for other in earlier):
            usable = ", ".join(other.name for other in earlier if other.makes_model) or "none"
            analysis.add(
                "error",
                step.name,
                "unknown-reward-model",
                f"The reward {name} of step {step.name} scores with {scoring!r}, and no step before it of that name "
                "makes a model.",
                f"name an earlier step that makes a model ({usable})",
                asked=scoring,
            )
            return
    _add(analysis, step, entry.component.name, weight, entry, values, source)


def _bind_step(
    analysis: Analysis, step: StepAnalysis, source: StepAnalysis, weight: float, options: dict[str, Any]
) -> None:
    """Score with the model of a reward step, through the reward that its trainer names."""
    if source.entry is None or not isinstance(source.entry.spec, TrainerSpec):
        return  # what is wrong there is said there
    provider, scored_by = source.entry.component.provider, source.entry.spec.scored_by
    entry = analysis.session.registry.get("reward", f"{provider}/{scored_by}") if scored_by else None
    if entry is None:
        analysis.add(
            "error",
            step.name,
            "no-scorer",
            f"Step {step.name} would be scored by the model of step {source.name}, and {source.entry.component.id} "
            + (
                f"names a reward {scored_by!r} that is not there." if scored_by else "does not say what scores with it."
            ),
            "use another method for the reward step, or a reward that takes a model: "
            f'{{"name": ..., "model": "{STEP}{source.name}"}}',
        )
        return
    if "model" in options:
        analysis.add(
            "error",
            step.name,
            "reward-model-twice",
            f"The reward {source.name!r} is the model of that step; found model={options['model']!r} as well.",
            "leave model out, or name the reward itself",
            option="reward",
        )
        return
    _, values = validated(
        analysis, step.name, f"reward {source.name}", entry, {"model": f"{STEP}{source.name}", **options}, None
    )
    if values is not None:
        _add(analysis, step, source.name, weight, entry, values, source.name)


def _bind_callable(analysis: Analysis, step: StepAnalysis, ref: str, weight: float, options: dict[str, Any]) -> None:
    found = analysis.objects.get(ref)
    name = name_of(found) if found is not None else ref.removeprefix(OBJECT).partition("-")[0]
    problem, fix = "", 'pass options by name to a packaged reward: {"name": "exact-match", ...}'
    if found is None:
        problem, fix = "is in memory, and not here", "run the pipeline that was given it, or name a reward of a plugin"
    elif isinstance(found, type):
        problem, fix = "is a class", f"pass an object of it, or Session(plugins=[{name}]) and its name"
    elif not callable(found):
        problem, fix = f"is a {type(found).__name__}, which cannot be called", "pass a function"
    elif options:
        problem = f"is a callable, which takes no options; found {', '.join(options)}"
    elif not is_reward(found):
        problem, fix = "does not take prompts and completions", f"def {name}(prompts, completions, **columns): ..."
    if problem:
        analysis.add("error", step.name, "reward-callable", f"The reward {name} {problem}.", fix, option="reward")
        return
    taken = {reward.name for reward in step.rewards}
    step.rewards.append(ResolvedReward(name=free_name(name, taken), weight=weight, memory=ref))


def _add(
    analysis: Analysis,
    step: StepAnalysis,
    name: str,
    weight: float,
    entry: Entry,
    values: Mapping[str, Any],
    source: str | None,
) -> None:
    step.rewards.append(
        ResolvedReward(
            name=free_name(name, {reward.name for reward in step.rewards}),
            weight=weight,
            component=entry.component,
            options=values,
            step=source,
        )
    )
    step.reward_entries.append(entry)


# ---------------------------------------------------------------- columns


def needed_columns(reward: ResolvedReward, session: Session, objects: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of the prompts' rows that a reward cannot do without.

    Of a component they are the ``columns`` of its spec, each called as the option of that name says, if it has one; of
    a callable its arguments without a default.
    """
    if reward.component is None:
        found = objects.get(reward.memory or "")
        signature = signature_of(found) if found is not None else None
        if signature is None:
            return ()
        known = ("prompts", "completions", "completion_ids", "finished")
        return tuple(
            name
            for name, parameter in signature.parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.default is parameter.empty
            and name not in known
        )
    spec = session.spec(reward.component)
    columns = spec.columns if isinstance(spec, RewardSpec) else ()
    options = reward.options
    return tuple(options[name] if isinstance(options.get(name), str) else name for name in columns)


def missing_columns(needed: Sequence[str], data: Dataset, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of ``needed`` that none of the rows has."""
    if data.schema != "prompt" or not rows:
        return []
    return [name for name in needed if not any(name in row.get("columns", {}) for row in rows)]


# ---------------------------------------------------------------- while a plan runs


def step_references(value: Any) -> Iterator[str]:
    """Names in every ``step:<name>`` of an option value."""
    if isinstance(value, str):
        if value.startswith(STEP):
            yield value.removeprefix(STEP)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from step_references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from step_references(item)


def reward_keys(
    rewards: Sequence[ResolvedReward], session: Session, objects: Mapping[str, Any], keys: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What the scores of a step depend on: components, options and weights, the keys of the reward steps, the files of
    reward models, and the code of callables.

    An option that is the path of a file (a list of words, a schema) counts by the file as well: up to 64 MiB by its
    bytes, above by its size and the time of its last change.

    Args:
        rewards: those of the step.
        session: plugins and settings.
        objects: things in memory by reference.
        keys: key of every earlier step, by name.
    """
    found: list[dict[str, Any]] = []
    for reward in rewards:
        facts: dict[str, Any] = {"name": reward.name, "weight": reward.weight}
        if reward.component is None:
            facts["code"] = callable_digest(_in_memory(reward, objects))
        else:
            facts |= {"component": asdict(reward.component), "options": thaw(reward.options)}
            model = facts["options"].get("model")
            if isinstance(model, str) and not model.startswith(STEP):
                facts["options"]["model"] = session.resolve_model(model, objects=objects).fingerprint()
            if files := dict(_files(value for name, value in facts["options"].items() if name != "model")):
                facts["files"] = files
            facts["steps"] = {name: keys[name] for name in step_references(facts["options"]) if name in keys}
        found.append(facts)
    return found


def _files(values: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Every option value that is the path of a file, with what the file counts by."""
    for value in values:
        if isinstance(value, Mapping):
            yield from _files(value.values())
        elif isinstance(value, list | tuple):
            yield from _files(value)
        elif isinstance(value, str) and value:
            try:
                path = Path(value).expanduser()
                if not path.is_file():
                    continue
                facts = path.stat()
                if facts.st_size <= _WHOLE_FILE:
                    yield value, hashlib.sha256(path.read_bytes()).hexdigest()
                else:
                    yield value, f"{facts.st_size} bytes of {facts.st_mtime_ns}"
            except (OSError, ValueError, RuntimeError):  # no path after all, or no file that can be read
                continue


def bound_rewards(
    rewards: Sequence[ResolvedReward], session: Session, objects: Mapping[str, Any]
) -> tuple[BoundReward, ...]:
    """The rewards of a step, made but not started.

    Raises:
        PluginError: if one cannot be made, or is no reward.
        MissingDependencyError: if a package is missing.
    """
    return tuple(_bound(reward, session, objects) for reward in rewards)


def _bound(reward: ResolvedReward, session: Session, objects: Mapping[str, Any]) -> BoundReward:
    component = reward.component
    if component is None:
        found = _in_memory(reward, objects)
        where = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', type(found).__qualname__)}"
        return BoundReward(name=reward.name, reward=found, weight=reward.weight, label=where.lstrip("."))
    target = session.load(component)
    if isinstance(target, types.FunctionType) and session.options_model(component) is None and is_reward(target):
        made: Any = target  # a function that was decorated is the reward itself
    else:
        options = session.parse_options(component, reward.options)
        made = session.create(component) if options is None else session.create(component, options)
    if not callable(made):
        raise PluginError(
            f"{component.id} is not a reward.",
            code="not-a-reward",
            found=component.target,
            fix="its class needs __call__(prompts, completions, **columns); see tunekit.plugins.Reward",
        )
    return BoundReward(name=reward.name, reward=made, weight=reward.weight, label=component.label)


def fitted_rewards(rewards: Sequence[BoundReward]) -> tuple[BoundReward, ...]:
    """The rewards, each given only the columns that it takes; see :func:`tunekit._reward_callables.fitted`."""
    return tuple(replace(bound, reward=fitted(bound.reward)) for bound in rewards)


def start_rewards(rewards: Sequence[BoundReward], ctx: StepContext) -> None:
    """Let every reward load what it needs, once. Rewards of the step that load one model share it: they only read it.

    Raises:
        StepError: if one fails; what a reward raises on purpose, a ``TunekitError``, comes out with its name.
    """
    sharing = _sharing(ctx)
    for bound in rewards:
        start = getattr(bound.reward, "start", None)
        if not callable(start):
            continue
        try:
            start(sharing)
        except TunekitError as error:
            error.details.setdefault("reward", bound.name)
            raise
        except (Exception, SystemExit) as error:
            raise StepError(
                f"The reward {bound.name} of step {ctx.step.name} cannot be started.",
                code="reward-failed",
                asked=bound.label,
                found=f"{type(error).__name__}: {error}",
                fix="mend its start(ctx), or update the plugin; details['traceback'] has the traceback",
                details={"step": ctx.step.name, "reward": bound.name, "traceback": traceback.format_exc()},
            ) from error


def _sharing(ctx: StepContext) -> StepContext:
    """The context, where :meth:`StepContext.load_model` reads each model once."""
    load = ctx._load_other
    if load is None:
        return ctx
    loaded: dict[str, LoadedModel] = {}

    def load_once(ref: str) -> LoadedModel:
        if ref not in loaded:
            loaded[ref] = load(ref)
        return copy.copy(loaded[ref])

    return replace(ctx, _load_other=load_once)


def _in_memory(reward: ResolvedReward, objects: Mapping[str, Any]) -> Any:
    try:
        return objects[reward.memory or ""]
    except KeyError:
        raise OptionsError(
            f"The reward {reward.name} is a callable in memory that is not here.",
            code="lost-object",
            fix="run the pipeline that was given it, or name a reward of a plugin",
        ) from None
