"""Rewards of a step: what `reward=` may be, which step depends on what, and reward models as a side branch.

The "weights" are one number in a file (tests/support/toy_plugin.py), so that nothing heavy is loaded.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import toy_plugin

import tunekit.plugins
from tunekit import Pipeline, Session
from tunekit._reward_callables import callable_digest, fitted, opaque_parts
from tunekit.errors import ArtifactError, CheckFailed, PipelineError, StepError
from tunekit.events import Event, Notice
from tunekit.plugins import Artifact, Options, RewardSpec, StepContext, TrainerSpec, hookimpl
from tunekit.results import RunResult

PAIRS = [{"prompt": "a", "chosen": "good", "rejected": "bad"}]
SEEN: list[tuple[str, Any]] = []


class ScorerOptions(Options):
    model: str
    scale: float = 1.0


class Scorer:
    """Scores with the number that a reward step made."""

    def __init__(self, options: ScorerOptions) -> None:
        self.options = options

    def start(self, ctx: StepContext) -> None:
        loaded = ctx.load_model(self.options.model)
        SEEN.append(("start", loaded.path.parent.name if loaded.path else ""))
        self.value = loaded.model["w"]

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return [self.options.scale * self.value] * len(completions)


class MatchOptions(Options):
    answer: str = "answer"


@tunekit.plugins.reward(name="match", columns=("answer",), options=MatchOptions, runs_code=True)
class Match:
    def __init__(self, options: MatchOptions) -> None:
        self.column = options.answer

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(one == two) for one, two in zip(completions, columns[self.column], strict=True)]


@tunekit.plugins.reward(name="brevity")
def brevity(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """The shorter the better."""
    return [-float(len(completion)) for completion in completions]


class Online(toy_plugin.ToyTrainer):
    """Scores one completion of each prompt, then trains as the others do."""

    def run(self, ctx: StepContext) -> Artifact:
        assert ctx.data is not None
        rows = list(ctx.data.rows())
        for bound in ctx.rewards:
            columns = {name: [row["columns"][name] for row in rows] for name in rows[0].get("columns", {})}
            scores = bound.reward([row["prompt"] for row in rows], ["ok"] * len(rows), **columns)
            SEEN.append((bound.name, [bound.weight * (score or 0.0) for score in scores]))
        return super().run(ctx)


class Rewarding:
    """Trainers of reward models and trainers that score."""

    @hookimpl
    def tunekit_trainers(self) -> list[TrainerSpec]:
        common: Any = {"target": "toy_plugin:ToyTrainer", "options": "toy_plugin:ToyOptions"}
        online: Any = {"target": f"{__name__}:Online", "options": "toy_plugin:ToyOptions", "data": ("prompt",)}
        return [
            TrainerSpec(name="reward", stage="reward", data=("preference",), scored_by="scorer", **common),
            TrainerSpec(name="mute", stage="reward", data=("preference",), **common),
            TrainerSpec(name="ppo", stage="align", rewards="required", **online),
            TrainerSpec(name="maybe", stage="align", rewards="optional", **online),
            TrainerSpec(name="thumbs", stage="align", data=("feedback",), **common),
        ]

    @hookimpl
    def tunekit_rewards(self) -> list[RewardSpec]:
        return [RewardSpec(name="scorer", target=f"{__name__}:Scorer", options=f"{__name__}:ScorerOptions")]


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(plugins=[toy_plugin, Rewarding(), Match, brevity], autoload=False)


@pytest.fixture(autouse=True)
def _cleared() -> Iterator[None]:
    SEEN.clear()
    toy_plugin.RUNS.clear()
    yield


@pytest.fixture
def base(tmp_path: Path, session: Session) -> Pipeline:
    toy_plugin.write_model(tmp_path / "base", 3.0)
    return Pipeline(model=tmp_path / "base", session=session)


def chain(base: Pipeline, steps: int = 4, **align: Any) -> Pipeline:
    line = base.sft([{"text": "one two"}]).reward(PAIRS, steps=steps)
    return line.align(method="ppo", **{"prompts": ["a", "b"], **align})


def found(line: Pipeline) -> list[tuple[str, str | None, str]]:
    return [(finding.level, finding.step, finding.code) for finding in line.check()]


def bound(line: Pipeline) -> list[dict[str, Any]]:
    steps = json.loads(line.explain("json"))["steps"]
    return [{key: reward[key] for key in ("name", "weight", "id", "step")} for reward in steps[-1].get("rewards", [])]


# ---------------------------------------------------------------- what reward= may be


def one(name: str, weight: float = 1.0, id: str | None = None, step: str | None = None) -> dict[str, Any]:
    return {"name": name, "weight": weight, "id": id, "step": step}


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("reward", [one("reward", id="inline/scorer", step="reward")]),
        ("inline/brevity", [one("brevity", id="inline/brevity")]),
        ({"name": "reward", "weight": -2, "scale": 3.0}, [one("reward", -2.0, "inline/scorer", "reward")]),
        (
            {"reward": 1, "brevity": 0.1},
            [one("reward", id="inline/scorer", step="reward"), one("brevity", 0.1, "inline/brevity")],
        ),
        (["brevity", "brevity"], [one("brevity", id="inline/brevity"), one("brevity-2", id="inline/brevity")]),
        ({"brevity": {"weight": 0.5}}, [one("brevity", 0.5, "inline/brevity")]),
        (len_reward := lambda prompts, completions, **columns: [1.0] * len(prompts), [one("function")]),
        (
            [functools.partial(brevity, answer=1), {"name": len_reward, "weight": 2}],
            [one("brevity"), one("function", 2)],
        ),
        ({"name": "scorer", "model": "step:sft"}, [one("scorer", id="inline/scorer", step="sft")]),
    ],
)
def test_every_form_of_reward(base: Pipeline, reward: Any, expected: list[dict[str, Any]]) -> None:
    assert bound(chain(base, reward=reward)) == expected


def test_without_the_option_the_nearest_reward_step_scores(base: Pipeline) -> None:
    line = base.reward(PAIRS).reward(PAIRS, name="second")
    assert bound(line.align(method="ppo", prompts=["a"])) == [one("second", id="inline/scorer", step="second")]
    assert bound(line.align(method="maybe", prompts=["a"])) == [one("second", id="inline/scorer", step="second")]
    assert bound(line.align(method="maybe", prompts=["a"], reward=None)) == []
    assert bound(base.align(method="maybe", prompts=["a"])) == []


class Mean:
    """A callable object without the signature of a reward."""

    def __call__(self, texts: list[str]) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"reward": "brevty"}, "unknown-reward", "brevity"),
        ({"reward": "./model"}, "unknown-reward", '"model": \'./model\''),
        ({"reward": "sft"}, "unknown-reward", "Step sft trains no reward model"),
        ({"reward": "align"}, "unknown-reward", "Step align trains no reward model"),
        ({"reward": 3}, "reward-form", "names no reward"),
        ({"reward": [{"weight": 1, "model": "x"}]}, "reward-form", "names no reward"),
        ({"reward": {"brevity": True}}, "reward-weight", "True"),
        ({"reward": {"name": "scorer", "model": "step:nowhere"}}, "unknown-reward-model", "(sft, reward)"),
        ({"reward": {"name": "reward", "model": "step:sft"}}, "reward-model-twice", "leave model out"),
        ({"reward": {"name": "scorer", "model": "step:sft", "scal": 1}}, "unknown-option", "scale"),
        ({"reward": Mean()}, "reward-callable", "prompts and completions"),
        ({"reward": Mean}, "reward-callable", "is a class"),
        ({"reward": {"name": brevity, "scale": 2}}, "reward-callable", "takes no options"),
        ({"reward": "match"}, "reward-column", "'answer'"),
        ({"reward": lambda prompts, completions, verdict: [], "prompts": [{"prompt": "a", "verdct": 1}]},
         "reward-column", "verdct"),
        ({"method": "dpo", "prompts": PAIRS, "reward": "brevity"}, "reward-not-taken", "maybe, ppo"),
    ],
)  # fmt: skip
def test_what_is_refused(base: Pipeline, options: dict[str, Any], code: str, words: str) -> None:
    line = base.sft([{"text": "one two"}]).reward(PAIRS).align(**{"method": "ppo", "prompts": ["a"], **options})
    errors = [finding for finding in line.check() if finding.level == "error"]
    assert errors[0].code == code and errors[0].step == "align"
    assert words in f"{errors[0].message} {errors[0].fix}"


def test_a_method_that_scores_needs_a_reward(base: Pipeline) -> None:
    assert ("error", "align", "no-reward") in found(base.align(method="ppo", prompts=["a"]))
    assert ("error", "align", "no-reward") in found(base.reward(PAIRS).align(method="ppo", prompts=["a"], reward=[]))
    later = base.align(method="ppo", prompts=["a"], reward="reward").reward(PAIRS)
    assert ("error", "align", "reward-later") in found(later)
    mute = base.reward(PAIRS, method="mute").align(method="ppo", prompts=["a"])
    assert ("error", "align", "no-scorer") in found(mute)


def test_what_is_worth_knowing(base: Pipeline, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "ok"}]
    assert ("warning", "align", "reward-runs-code") in found(chain(base, reward="match", prompts=rows))
    assert ("warning", "reward", "reward-unused") in found(chain(base, reward="brevity"))
    assert found(chain(base)) == [] and found(base.reward(PAIRS)) == []
    missing = chain(base, reward={"name": "scorer", "model": str(tmp_path / "nowhere")})
    assert ("error", "align", "unknown-model") in found(missing)


def test_a_column_is_called_as_the_option_says(base: Pipeline, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "solution": "ok"}, {"prompt": "b", "solution": "no"}]
    line = base.align(method="ppo", prompts=rows, reward={"name": "match", "answer": "solution"})
    assert not [finding for finding in line.check() if finding.level == "error"]
    line.run(tmp_path / "run")
    assert SEEN == [("match", [1.0, 0.0])]


def test_a_reward_is_given_the_columns_that_it_takes(base: Pipeline, tmp_path: Path) -> None:
    """Trainers hand over `completion_ids` and `finished`, and rows have columns for others."""
    rows = [{"prompt": "a", "answer": "ok", "other": 1}, {"prompt": "b", "answer": "no", "other": 2}]

    def plain(prompts: Any, completions: Any) -> list[float]:
        return [float(len(one)) for one in completions]

    def turned(completions: Any, prompts: Any, **kwargs: Any) -> list[float]:
        return [float(one) for one in kwargs["other"] if prompts == ["a", "b"]]

    class Right:
        def start(self, ctx: StepContext) -> None:
            SEEN.append(("started", None))

        def __call__(self, completions: Any, answer: Any, *, prompts: Any, weight: float = 1.0) -> list[float]:
            return [weight * (one == two) for one, two in zip(completions, answer, strict=True)]

    line = base.align(method="ppo", prompts=rows, reward=[plain, turned, Right()])
    assert [finding.code for finding in line.check() if finding.level == "error"] == []
    line.run(tmp_path / "run")
    assert SEEN == [("started", None), ("plain", [2.0, 2.0]), ("turned", [1.0, 2.0]), ("Right", [1.0, 0.0])]
    without = base.align(method="ppo", prompts=["a"], reward=Right())
    assert ("error", "align", "reward-column") in found(without)


def test_what_takes_all_columns_is_left_as_it_is() -> None:
    def by_position(prompts: Any, completions: Any, /, **columns: Any) -> list[float]:
        return [1.0]

    for reward in (brevity, by_position, lambda *args, **columns: [1.0], len, Mean()):
        assert fitted(reward) is reward
    assert fitted(lambda prompts, completions, answer=None: [answer])(["p"], ["c"], answer=3, finished=[True]) == [3]


def test_prompts_are_another_name_of_data(base: Pipeline) -> None:
    line = base.align(method="maybe", prompts=["a", [{"role": "user", "content": "b"}], {"prompt": "c", "answer": "d"}])
    assert line == base.align(
        [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}, {"prompt": "c", "answer": "d"}],
        method="maybe",
    )
    with pytest.raises(PipelineError, match="two names for one thing"):
        base.align(PAIRS, prompts=["a"])


# ---------------------------------------------------------------- the side branch


def test_steps_go_on_from_the_policy_not_from_the_reward_model(base: Pipeline, tmp_path: Path) -> None:
    """The step after a reward step starts from the model before it, and the run's model is the last one that writes."""
    line = chain(base).evaluate(["toybench"])
    inputs = {step["name"]: step["input"] for step in json.loads(line.explain("json"))["steps"]}
    assert inputs == {"sft": None, "reward": "sft", "align": "sft", "evaluate": "align"}
    result = line.run(tmp_path / "run")
    assert result.model is not None and result.model.path == result.step("align").folder / "model"
    assert SEEN[0] == ("start", "02-reward")

    short = base.sft([{"text": "one two"}]).reward(PAIRS).quantize("int4", input="reward").run(tmp_path / "short")
    for each in (short, RunResult.load(tmp_path / "short", session=short.step("sft").session)):
        assert each.model is not None and each.model.path.parent.name == "01-sft", "what is made of a reward model, too"
    alone = base.reward(PAIRS).run(tmp_path / "alone")
    assert alone.model is not None and alone.model.path.parent.name == "01-reward"


def test_a_quantized_reward_model_is_no_input_either(base: Pipeline) -> None:
    line = base.sft([{"text": "one two"}]).reward(PAIRS).quantize("int4", input="reward").evaluate(["toybench"])
    assert [step["input"] for step in json.loads(line.explain("json"))["steps"]] == [None, "sft", "reward", "sft"]
    chosen = base.reward(PAIRS).evaluate(["toybench"], input="reward")
    assert json.loads(chosen.explain("json"))["steps"][-1]["input"] == "reward"


def test_the_base_model_is_not_taken_for_a_reward_model(base: Pipeline) -> None:
    """`reward().quantize()` would quantize weights that no step of the line touched."""
    for line in (base.reward(PAIRS).quantize("int4"), base.reward(PAIRS).evaluate(["toybench"])):
        (error,) = [finding for finding in line.check() if finding.level == "error"]
        assert error.code == "reward-model-skipped" and "input='reward'" in error.fix
        assert "starts from the base model, not from the reward model of step reward" in error.message
    small = base.quantize("int4").reward(PAIRS, input=None)
    for line in (
        base.reward(PAIRS).quantize("int4", input="reward"),
        base.evaluate(["toybench"]).reward(PAIRS),
        base.reward(PAIRS).align(method="ppo", prompts=["a"]).evaluate(["toybench"]),
        base.sft([{"text": "one two"}]).reward(PAIRS).evaluate(["toybench"]),
        small.evaluate(["toybench"], input="quantize"),
    ):
        assert "reward-model-skipped" not in [finding.code for finding in line.check()]
    assert ("error", "evaluate", "reward-model-skipped") in found(small.evaluate(["toybench"]))


# ---------------------------------------------------------------- what a step depends on


def ran(line: Pipeline, folder: Path) -> list[str]:
    toy_plugin.RUNS.clear()
    line.run(folder)
    return list(toy_plugin.RUNS)


def scaled(by: float) -> Any:
    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [by] * len(completions)

    return reward


class Offset:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [self.by] * len(completions)


def test_a_step_is_run_again_when_its_rewards_change(base: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert ran(chain(base), folder) == ["sft", "reward", "align"]
    assert ran(chain(base), folder) == []
    assert ran(chain(base, steps=5), folder) == ["reward", "align"], "the policy depends on the reward model"
    assert ran(chain(base, steps=5, reward={"reward": 2.0}), folder) == ["align"]
    assert ran(chain(base, steps=5, reward={"name": "reward", "weight": 2.0}), folder) == []
    assert ran(chain(base, steps=5, reward=scaled(1.0)), folder) == ["align"]
    assert ran(chain(base, steps=5, reward=scaled(1.0)), folder) == [], "another object, the same code"
    assert ran(chain(base, steps=5, reward=scaled(2.0)), folder) == ["align"]
    assert ran(chain(base, steps=5, reward=Offset(1.0)), folder) == ["align"]
    assert ran(chain(base, steps=5, reward=Offset(1.0)), folder) == []
    assert ran(chain(base, steps=5, reward=Offset(2.0)), folder) == ["align"]
    # A function that is held counts by its code.
    held = Offset(2.0)
    held.rule = lambda text: 1.0  # type: ignore[attr-defined]
    assert ran(chain(base, steps=5, reward=held), folder) == ["align"]
    held.rule = lambda text: 2.0  # type: ignore[attr-defined]
    assert ran(chain(base, steps=5, reward=held), folder) == ["align"]
    assert ran(chain(base, steps=5, reward=functools.partial(scaled(1.0), rule=held.rule)), folder) == ["align"]  # type: ignore[attr-defined]
    assert ran(chain(base, steps=5, reward=functools.partial(scaled(1.0), rule=len)), folder) == ["align"]


def test_the_digest_of_a_callable_is_the_same_in_every_process() -> None:
    """A killed run that goes on in another process finds its step again."""
    code = """
        import functools
        from tunekit._reward_callables import callable_digest

        WORDS = {"yes", "no", "perhaps"}

        class Judge:
            def __init__(self, scale):
                self.scale, self.words, self.rule = scale, {"a": 1, "b": {2, 3}}, lambda text: len(text)

            def __call__(self, prompts, completions, **columns):
                return [self.scale * (one in WORDS) for one in completions]

        print(callable_digest(Judge(2)), callable_digest(functools.partial(Judge(2), prompts=["a"])))
        print(callable_digest(Judge(3)), callable_digest(Judge(2).__call__))
    """
    texts = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1] and len(set(texts[0].split())) == 4


def test_what_does_not_count_is_told(base: Pipeline) -> None:
    """A callable may hold what cannot be looked into, such as a model: that is said."""

    class Judge:
        pass

    judge, scale = Judge(), 2.0

    def judged(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [scale + (judge is None)] * len(completions)

    held = Offset(1.0)
    held.by = {"judges": [judge]}  # type: ignore[assignment]
    for reward in (judged, held, functools.partial(brevity, judge=judge), held.__call__):
        (note,) = chain(base, reward=["reward", reward]).check()
        assert note.code == "reward-state" and "Judge" in note.message
    plain = ["reward", scaled(2.0), Offset(1.0), functools.partial(brevity, answer=[1, {"a": None}])]
    assert chain(base, reward=plain).check() == []


def knows(answers: Any) -> Any:
    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(one in answers) for one in completions]

    return reward


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, dict.fromkeys])
def test_every_answer_that_a_reward_holds_counts(kind: Any) -> None:
    answers = [f"answer {number}" for number in range(12_000)]
    changed = [*answers[:6000], "another", *answers[6001:]]
    assert callable_digest(knows(kind(answers))) == callable_digest(knows(kind(list(answers))))
    assert callable_digest(knows(kind(answers))) != callable_digest(knows(kind(changed)))
    assert opaque_parts(knows(kind(answers))) == []


def test_what_is_too_long_to_be_hashed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunekit.plugins._code._TEXT", 2**20)
    (told,) = opaque_parts(knows([f"{number:06}" for number in range(100_000)]))
    assert "a list of which" in told and "beyond 1 MiB" in told


class Quality:
    """Not a plain value."""


QUALITY = Quality()


def test_what_a_reward_names_is_told_too() -> None:
    def by_global(prompts: Any, completions: Any) -> list[float]:
        return [float(QUALITY is not None)] * len(completions)

    def by_default(prompts: Any, completions: Any, judge: Any = QUALITY) -> list[float]:
        return [0.0]

    def by_keyword(prompts: Any, completions: Any, *, judge: Any = QUALITY) -> list[float]:
        return [0.0]

    def through_another(prompts: Any, completions: Any) -> list[float]:
        return by_global(prompts, completions)

    for reward in (by_global, by_default, by_keyword, through_another):
        assert opaque_parts(reward) == ["Quality"]


_USES = {
    "from reward_helpers import check": "check(one)",
    "import reward_helpers": "reward_helpers.check(one)",
    "import json": "__import__('json') and inside(one)",
}


@pytest.mark.parametrize(("head", "call"), _USES.items())
def test_code_of_other_modules_of_the_user_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, call: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    body = "def inside(one):\n    from reward_helpers import check\n    return check(one)\n"
    rule = "def reward(prompts, completions):\n    return [{} for one in completions]\n"
    (tmp_path / "reward_rules.py").write_text(f"{head}\n{body}{rule.format(call)}")

    def made(answer: str) -> str:
        for name in ("reward_helpers", "reward_rules"):
            sys.modules.pop(name, None)
        (tmp_path / "reward_helpers.py").write_text(f"ANSWER = {answer!r}\ndef check(one):\n    return one == ANSWER\n")
        importlib.invalidate_caches()
        return callable_digest(importlib.import_module("reward_rules").reward)

    assert made("four") == made("four") != made("five")


def test_a_reward_model_from_a_folder_counts_by_its_files(base: Pipeline, tmp_path: Path) -> None:
    scorer = {"name": "scorer", "model": str(tmp_path / "scorer")}
    toy_plugin.write_model(tmp_path / "scorer", 1.0)
    assert ran(chain(base, reward=scorer), tmp_path / "run")[-1] == "align"
    assert SEEN[-1] == ("scorer", [1.0, 1.0])
    assert ran(chain(base, reward=scorer), tmp_path / "run") == []
    toy_plugin.write_model(tmp_path / "scorer", 7.0)
    assert ran(chain(base, reward=scorer), tmp_path / "run") == ["align"]
    assert SEEN[-1] == ("scorer", [7.0, 7.0])


def test_rewards_that_score_with_one_model_share_it(base: Pipeline, tmp_path: Path) -> None:
    class Keeps:
        def start(self, ctx: StepContext) -> None:
            self.loaded = ctx.load_model("step:reward")

        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            SEEN.append(("model", id(self.loaded.model)))
            self.loaded.path = None  # what is said of the model is each reward's own
            return [0.0] * len(completions)

    rewards = [Keeps(), Keeps()]
    chain(base, reward=rewards).run(tmp_path / "run")
    (_, one), (_, two) = [seen for seen in SEEN if seen[0] == "model"]
    assert one == two and rewards[0].loaded is not rewards[1].loaded


class ListOptions(Options):
    words: str
    more: dict[str, list[str]] = {}


@tunekit.plugins.reward(name="listed", options=ListOptions)
class Listed:
    def __init__(self, options: ListOptions) -> None:
        self.words = Path(options.words).read_text().split()

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(one in self.words) for one in completions]


def test_a_file_that_an_option_names_counts_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_plugin.write_model(tmp_path / "base", 3.0)
    session = Session(plugins=[toy_plugin, Rewarding(), Listed], autoload=False)
    words, more = tmp_path / "words.txt", tmp_path / "more.txt"
    reward = {"name": "listed", "words": str(words), "more": {"lists": [str(more), "x" * 5000, "a\0b"]}}
    line = Pipeline(tmp_path / "base", session=session).align(method="ppo", prompts=["a"], reward=reward)
    words.write_text("ok")
    more.write_text("one")
    folder = tmp_path / "run"
    assert ran(line, folder) == ["align"] and ran(line, folder) == []
    words.write_text("no")
    assert ran(line, folder) == ["align"] and ran(line, folder) == []
    more.write_text("two")
    assert ran(line, folder) == ["align"] and ran(line, folder) == []
    monkeypatch.setattr("tunekit._rewards._WHOLE_FILE", 1)
    assert ran(line, folder) == ["align"] and ran(line, folder) == []
    os.utime(words, (1, 1))
    assert ran(line, folder) == ["align"]


def test_the_model_of_a_step_is_the_one_that_it_wrote(base: Pipeline, tmp_path: Path) -> None:
    """`step:` gives the finished step's weights, and refuses them once somebody changed the files."""
    result = chain(base).run(tmp_path / "run")
    weights = result.step("reward").folder / "model" / "weights.safetensors"
    assert SEEN[1] == ("reward", [float(weights.read_text())] * 2)
    line = chain(base, reward={"reward": 3.0})

    class Swap:
        @hookimpl(wrapper=True)
        def tunekit_run_step(self, step: Any, ctx: StepContext) -> Any:
            if step.kind == "align":
                weights.write_text("0.5")
                with pytest.raises(ArtifactError, match="are not the ones that step reward wrote"):
                    ctx.load_model("step:reward")
                with pytest.raises(ArtifactError, match="There is no model of a step 'rewad'") as caught:
                    ctx.load_model("step:rewad")
                assert caught.value.suggestions == ("reward",)
            return (yield)

    line.run(tmp_path / "run", session=Session(plugins=[toy_plugin, Rewarding(), Swap()], autoload=False))


def test_a_reward_that_cannot_start_stops_its_step_alone(base: Pipeline, tmp_path: Path) -> None:
    class Broken:
        def start(self, ctx: StepContext) -> None:
            raise OSError("no such port")

        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return []

    with pytest.raises(StepError, match="The reward Broken of step align cannot be started") as caught:
        chain(base, reward=Broken()).run(tmp_path / "run")
    assert "no such port" in str(caught.value) and caught.value.details["reward"] == "Broken"
    assert toy_plugin.RUNS == ["sft", "reward"]


# ---------------------------------------------------------------- data that know their method


class Store:
    """Data that know which method learns from them, and give the shape that it takes."""

    name = "store"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def best_method(self, stage: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def as_dataset(self, accepts: Sequence[str], *, limit: int | None = None, on_bad_row: str = "error") -> Any:
        from tunekit.data import load_dataset

        rows = [{"prompt": "a"}] if "prompt" in accepts else PAIRS
        return load_dataset(rows, accepts=accepts, limit=limit, on_bad_row=on_bad_row)


def test_data_may_choose_the_method(base: Pipeline, tmp_path: Path) -> None:
    store = Store(("maybe", "it has prompts only."))
    line = base.align(data=store)
    assert ("note", "align", "method-chosen") in found(line)
    assert "maybe was chosen for the data of align: it has prompts only" in line.explain()
    events: list[Event] = []
    result = line.run(tmp_path / "run", on_event=events.append)
    assert result.step("align").component == "inline/maybe"
    notices = [event.message for event in events if isinstance(event, Notice) and event.code == "method-chosen"]
    assert notices == ["maybe was chosen for the data: it has prompts only."]
    named = base.align(method="dpo", data=store)
    assert found(named) == [] and "chosen" not in named.explain()


def test_a_plugin_may_know_such_data_by_name(base: Pipeline) -> None:
    class Stores:
        @hookimpl
        def tunekit_resolve_dataset(self, ref: Any) -> Any:
            return Store(("maybe", "they are prompts")) if ref == "store://here" else None

    session = Session(plugins=[toy_plugin, Rewarding(), Stores()], autoload=False)
    line = base.align(data="store://here")
    assert [finding.code for finding in line.check(session)] == ["method-chosen"]
    assert session.resolve_dataset("store://here", accepts=("preference",)).schema == "preference"
    assert base.align(data=[{"prompt": "a"}]).plan.steps[0].method is None


def test_data_without_a_method_say_why(base: Pipeline) -> None:
    from tunekit.errors import DataError

    none = base.align(data=Store(DataError("3 thumbs are too few.", code="no-method", fix="collect more")))
    assert ("error", "align", "no-method") in found(none)
    with pytest.raises(CheckFailed, match="3 thumbs are too few"):
        none.explain()
    assert ("error", "align", "wrong-answer") in found(base.align(data=Store(3)))
    assert ("error", "align", "component-failed") in found(base.align(data=Store(KeyError("x"))))
    assert found(base.align(data=Store(None))) == [], "no opinion: the usual method"


def test_rows_for_another_method_name_it(base: Pipeline) -> None:
    """T16: rows that a method does not take are an error, and it says which method of the stage takes them."""
    rows = [{"prompt": "a", "completion": "b", "label": True}]
    (finding,) = [one for one in base.align(rows).check() if one.level == "error"]
    assert finding.code == "wrong-shape"
    assert finding.fix.startswith('use a method for such rows, align(method="thumbs"); or use data of the shape')
