"""What an import costs, and what it must not bring along. Each measurement is a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "gptqmodel",
    "numpy",
    "pydantic",
    "yaml",
    "pluggy",
    "rich",
    "typer",
)
ROUNDS = 12


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a bytecode cache of its own, as an installed package has one."""
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONDONTWRITEBYTECODE", "COVERAGE_PROCESS_START")
    }
    return {**env, "PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pycache"))}


def cpu_seconds(code: str, env: dict[str, str]) -> float:
    """User and system time of one interpreter that runs ``code``."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratio(code: str, env: dict[str, str], limit: float) -> float:
    """Least time of ``code`` over least time of a bare interpreter; taken in turns, as other work comes and goes."""
    cpu_seconds(code, env), cpu_seconds("pass", env)  # fill the bytecode cache
    best: dict[str, float] = {}
    for number in range(3 * ROUNDS):
        for each in ("pass", code):
            best[each] = min(best.get(each, 9.0), cpu_seconds(each, env))
        if number >= ROUNDS and best[code] <= limit * best["pass"]:
            break
    return best[code] / best["pass"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_importing_tunekit_costs_next_to_nothing(compiled: dict[str, str]) -> None:
    assert ratio("import tunekit", compiled, 1.3) <= 1.3


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_the_pipeline_is_cheap(compiled: dict[str, str]) -> None:
    assert ratio("from tunekit import Pipeline", compiled, 4.0) <= 4.0


def modules_after(code: str, **env: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import tunekit",
        "from tunekit import Pipeline, lora, CancelToken, TunekitError, Plan, Session, Finding",
        "from tunekit import Pipeline; p = Pipeline('m').sft('a', epochs=1).lora(r=8); repr(p), p.plan.fingerprint()",
        "import tunekit.plugins",
        "import tunekit.data",
        "from tunekit.plugins import TrainerSpec, StepContext, Artifact, Adapter",
        "import tunekit.session, tunekit.check, tunekit.resolve, tunekit.explain, tunekit.planfile, tunekit.results",
        "import tunekit.run",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_the_marker_brings_pluggy_and_nothing_else() -> None:
    assert modules_after("from tunekit.plugins import hookimpl") & set(HEAVY) == {"pluggy"}


def test_plugin_modules_are_light() -> None:
    names = (
        "tunekit_transformers",
        "tunekit_trl",
        "tunekit_ppo",
        "tunekit_peft",
        "tunekit_gptq",
        "tunekit_evals",
        "tunekit_lm_eval",
    )
    code = "import " + ", ".join(f"{name}.plugin" for name in names)
    assert modules_after(code) & set(HEAVY) == {"pluggy"}
    options = modules_after("import " + ", ".join(f"{name}.options" for name in names))
    assert options & set(HEAVY) <= {"pluggy", "pydantic"}


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    code = (
        "import logging, os, signal\n"
        "def state():\n"
        "    root = logging.root\n"
        "    return dict(os.environ), os.getcwd(), signal.getsignal(signal.SIGINT), list(root.handlers), root.level\n"
        "before = state()\n"
        "import tunekit\n"
        "for name in tunekit.__all__: getattr(tunekit, name)\n"
        "tunekit.default_session().components()\n"
        "assert before == state()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
