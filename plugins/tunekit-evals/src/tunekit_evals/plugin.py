"""What tunekit-evals offers: records only, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunekit.plugins import BenchmarkSpec, Finding, RewardSpec, StepSpec, hookimpl
from tunekit_evals.choice_specs import SETS, choice_specs
from tunekit_evals.knowledge_specs import knowledge_specs
from tunekit_evals.long_text_specs import long_text_specs

api_version = 1

_REQUIRES = ("torch>=2.8", "transformers>=5.15,<6")


@hookimpl
def tunekit_benchmarks() -> list[BenchmarkSpec]:
    """The benchmarks."""
    return [
        *knowledge_specs(_REQUIRES),
        BenchmarkSpec(
            name="bfcl",
            target="tunekit_evals.bfcl:Bfcl",
            summary="BFCL: function calls in Python, Java and JavaScript, compared by abstract syntax",
            options="tunekit_evals.bfcl_options:BfclOptions",
            requires=_REQUIRES,
            needs="generation",
            hub="gorilla-llm/Berkeley-Function-Calling-Leaderboard",
            provenance="Patil et al. 2025 (ICML), https://gorilla.cs.berkeley.edu/leaderboard.html; data, prompt and "
            "verdicts of https://github.com/ShishirPatil/gorilla (bfcl-eval 2026.3.23), Apache-2.0",
        ),
        *(
            BenchmarkSpec(
                name=name,
                target=f"tunekit_evals.humaneval:{target}",
                summary=f"HumanEval: Python functions that must pass tests, run in isolation; {asked}",
                options="tunekit_evals.humaneval_options:HumanEvalOptions",
                requires=_REQUIRES,
                needs="generation",
                folder="humaneval",
                hub="openai/openai_humaneval",
                runs_code=True,
                provenance="Chen et al. 2021, arXiv:2107.03374; https://github.com/openai/human-eval, MIT: data, stop "
                "strings and pass@k estimator" + credit,
            )
            for name, target, asked, credit in (
                ("humaneval", "HumanEval", "the model continues the function", ""),
                (
                    "humaneval_instruct",
                    "HumanEvalInstruct",
                    "the model is asked for the function",
                    "; wording of lm-evaluation-harness 0.4.13, MIT",
                ),
            )
        ),
        BenchmarkSpec(
            name="writing",
            target="tunekit_evals.writing:Writing",
            summary="Writing: texts to order, judged by a model in both orders or by criteria; win rate or points",
            options="tunekit_evals.writing_options:WritingOptions",
            requires=_REQUIRES,
            needs="generation",
            sample=True,
            provenance="requests of the user; the sample and the judge's prompts are tunekit's own; both orders after "
            "Zheng et al. 2023, arXiv:2306.05685",
        ),
        *choice_specs(_REQUIRES),
        *long_text_specs(_REQUIRES),
        *SETS,
    ]


@hookimpl
def tunekit_resolve_benchmark(ref: str) -> BenchmarkSpec | None:
    """The benchmark behind a file of the user's own questions."""
    from tunekit_evals.own_files import own_spec

    return own_spec(ref, _REQUIRES)


@hookimpl
def tunekit_check_plan(plan: Any) -> Iterable[Finding]:
    """Writing that nobody judges."""
    if not any(step.kind == "evaluate" for step in plan.steps):
        return []
    from tunekit_evals.judge import check_judges

    return list(check_judges(plan))


@hookimpl
def tunekit_steps() -> list[StepSpec]:
    """The step that runs benchmarks."""
    return [
        StepSpec(
            name="evaluate",
            target="tunekit_evals.evaluate:Evaluate",
            summary="Measures a model on benchmarks, row by row",
            options="tunekit_evals.options:EvaluateOptions",
            requires=_REQUIRES,
            makes="report",
            preview="tunekit_evals.prompt_preview:preview",
        )
    ]


@hookimpl
def tunekit_rewards() -> list[RewardSpec]:
    """What completions are scored with."""
    return [
        RewardSpec(
            name="code-tests",
            target="tunekit_evals.code_reward:CodeTests",
            options="tunekit_evals.code_reward_options:CodeTestsOptions",
            summary="1 for a program that passes the tests of its row, run in isolation, else 0",
            columns=("tests",),
            runs_code=True,
        )
    ]
