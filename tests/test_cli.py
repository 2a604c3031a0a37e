"""The command line: exit codes, JSON documents, errors for people, start-up, and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunekit.cli import doctor, exits, render
from tunekit.cli.app import app
from tunekit.errors import (
    ArtifactError,
    CheckFailed,
    DataError,
    MissingDependencyError,
    OptionsError,
    PipelineError,
    PluginError,
    RunCancelled,
    StepError,
    UnknownNameError,
    WorkdirLockedError,
)

SUPPORT = Path(__file__).parent / "support"
FIRST_PARTY = (
    "tunekit-transformers,tunekit-trl,tunekit-ppo,tunekit-peft,tunekit-gptq,tunekit-evals,tunekit-lm-eval,"
    "tunekit-example"
)
TEXT = [{"text": "one two three"}, {"text": "four"}]


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, str]:
    """An environment in which the toy plugin is installed, and no first-party plugin."""
    site = tmp_path / "site"
    info = site / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tunekit]\ntoy = toy_plugin\n")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(site)]),
        "TUNEKIT_DISABLE_PLUGINS": FIRST_PARTY,
        "COLUMNS": "200",
    }


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "tunekit.cli", *map(str, arguments)]


def call(env: dict[str, str], cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=env, cwd=cwd, capture_output=True, text=True, timeout=120)


def plan(folder: Path, *steps: dict[str, Any], name: str = "plan.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"schema": 1, "steps": list(steps)}))
    return path


def pretrain(**options: Any) -> dict[str, Any]:
    return {"kind": "pretrain", "name": "pretrain", "options": {"data": TEXT, **options}}


def sft(**options: Any) -> dict[str, Any]:
    return {"kind": "sft", "name": "sft", "options": {"data": TEXT, **options}}


# ------------------------------------------------------------------ start-up


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tunekit.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = ('torch', 'transformers', 'datasets', 'trl', 'peft', 'numpy', 'pandas', 'pluggy', 'yaml')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0
    assert made.stderr.strip() == "[]"
    for word in ("demo", "run", "explain", "check", "plugins", "plugin", "doctor", "Exit codes", "130"):
        assert word in made.stdout


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "run",
        "explain",
        "check",
        "plugins",
        "plugins show",
        "plugins check",
        "plugins new",
        "plugin new",
        "doctor",
    ],
)
def test_every_command_documents_the_exit_codes(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Exit codes" in result.output and "5 another run holds the work folder" in " ".join(result.output.split())


def test_the_reference_lists_every_exit_code_and_command() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "cli.md").read_text()
    for code in exits.ExitCode:
        assert f"\n| {int(code)} | " in page
        assert f"{int(code)} " in exits.HELP
    names = ("demo", "run", "explain", "check", "plugins", "plugins show", "plugins check", "plugin new", "doctor")
    for name in names:
        assert f"tunekit {name}" in page


def test_version() -> None:
    from importlib.metadata import version

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"tunekit {version('tunekit')}\n")


# ------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    ("error", "before", "running"),
    [
        (CheckFailed("x"), 1, 3),
        (PipelineError("x"), 1, 3),
        (OptionsError("x"), 1, 3),
        (UnknownNameError("x"), 1, 3),
        (PluginError("x"), 1, 3),
        (MissingDependencyError("x"), 1, 3),
        (StepError("x"), 3, 3),
        (DataError("x"), 4, 4),
        (ArtifactError("x"), 4, 4),
        (WorkdirLockedError("x"), 5, 5),
        (RunCancelled("x"), 130, 130),
        (KeyboardInterrupt(), 130, 130),
        (RuntimeError("x"), 70, 70),
    ],
)
def test_errors_have_their_exit_code(error: BaseException, before: int, running: int) -> None:
    assert exits.exit_code(error) == before
    assert exits.exit_code(error, running=True) == running


def test_wrong_usage_ends_with_2(toy: dict[str, str], tmp_path: Path) -> None:
    for arguments in (["nonsense"], ["run"], ["run", "--seed", "x", "p.yaml"], ["run", "--sed", "1"]):
        made = call(toy, tmp_path, *arguments)
        assert made.returncode == 2, made.stderr
        assert "Traceback" not in made.stderr


def test_a_plan_file_that_is_not_there_names_the_nearest(toy: dict[str, str], tmp_path: Path) -> None:
    plan(tmp_path, pretrain(), name="finetune.yaml")
    for name in ("run", "check", "explain"):
        made = call(toy, tmp_path, name, "finetun.yaml")
        assert made.returncode == 2
        assert "finetun.yaml does not exist. Did you mean finetune.yaml?" in " ".join(
            made.stderr.replace("│", " ").split()
        )
    assert "is a folder" in call(toy, tmp_path, "check", tmp_path).stderr


def test_a_finished_run_ends_with_0_and_shows_the_table(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(
        tmp_path, pretrain(), sft(), {"kind": "evaluate", "name": "evaluate", "options": {"benchmarks": ["toybench"]}}
    )
    made = call(toy, tmp_path, "run", path)
    assert made.returncode == 0, made.stderr
    assert "[1/3] pretrain: toy/causal" in made.stderr and "finished in" in made.stderr
    assert "1 pretrain" in made.stdout and "sample: not comparable" in made.stdout
    assert f"Everything is in {tmp_path / 'runs' / 'plan'}" in made.stdout
    assert (tmp_path / "runs" / "plan" / "report.html").is_file()

    again = call(toy, tmp_path, "run", path, "--quiet")
    assert again.returncode == 0 and again.stderr == ""
    assert again.stdout.count("taken from an earlier run") == 3


def test_json_is_one_document_on_standard_output(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, pretrain())
    made = call(toy, tmp_path, "run", path, "--json", "--workdir", "w", "--seed", "3")
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["ok"] is True and document["exit_code"] == 0 and document["seed"] == 3
    assert document["workdir"] == str(tmp_path / "w") and document["report"] == str(tmp_path / "w" / "report.html")
    (step,) = document["steps"]
    assert step["name"] == "pretrain" and step["component"].startswith("toy/causal")
    assert Path(step["model"]["path"]).is_dir()
    assert "[1/1] pretrain" in made.stderr


def test_plan_errors_end_with_1(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, pretrain(stepz=3), {**sft(), "method": "sfft"})
    for name in ("check", "run"):
        made = call(toy, tmp_path, name, path)
        assert made.returncode == 1, made.stderr
        assert "stepz" in made.stdout + made.stderr and "steps" in made.stdout + made.stderr
        assert "Traceback" not in made.stderr
    assert not (tmp_path / "runs").exists()
    document = json.loads(call(toy, tmp_path, "check", path, "--json").stdout)
    assert (
        document["ok"] is False and document["exit_code"] == 1 and document["errors"] == len(document["findings"]) == 2
    )
    assert {finding["step"] for finding in document["findings"]} == {"pretrain", "sft"}
    document = json.loads(call(toy, tmp_path, "run", path, "--json").stdout)
    assert document["exit_code"] == 1 and document["error"]["type"] == "CheckFailed"
    assert len(document["error"]["details"]["findings"]) == 2


def test_check_of_a_good_plan_ends_with_0(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, pretrain())
    made = call(toy, tmp_path, "check", path)
    assert made.returncode == 0, made.stderr + made.stdout
    assert json.loads(call(toy, tmp_path, "check", path, "--json").stdout)["ok"] is True


def test_strict_refuses_embedded_defaults(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, {"kind": "pretrain", "name": "pretrain"})
    assert call(toy, tmp_path, "check", path).returncode == 0
    assert call(toy, tmp_path, "check", path, "--strict").returncode == 1
    assert call(toy, tmp_path, "run", path, "--strict").returncode == 1


def test_a_plan_file_that_is_no_plan_ends_with_1(toy: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("steps: [\n")
    for name in ("run", "check", "explain"):
        made = call(toy, tmp_path, name, path)
        assert made.returncode == 1, made.stderr
        assert "broken.yaml" in made.stderr and "Traceback" not in made.stderr


def test_a_failed_step_ends_with_3_and_says_what_to_do(toy: dict[str, str], tmp_path: Path) -> None:
    made = call(toy, tmp_path, "run", plan(tmp_path, pretrain(), sft(fail_at=2)))
    assert made.returncode == 3
    assert "[2/2] sft: stopped, StepError: asked to fail" in made.stderr
    assert "error: asked to fail" in made.stderr and "Traceback" not in made.stderr


def test_a_crash_in_a_component_is_a_failed_step_with_its_traceback_on_demand(
    toy: dict[str, str], tmp_path: Path
) -> None:
    crash = {"kind": "sft", "name": "sft", "method": "crash", "options": {"data": TEXT}}
    path = plan(tmp_path, pretrain(), crash)
    made = call(toy, tmp_path, "run", path)
    assert made.returncode == 3 and "one over nothing" in made.stderr and "Traceback" not in made.stderr
    made = call(toy, tmp_path, "run", path, "--debug")
    assert made.returncode == 3 and "Traceback" in made.stderr and "toy_plugin.py" in made.stderr


def test_bad_data_ends_with_4(toy: dict[str, str], tmp_path: Path) -> None:
    """A bad row that check, which looks at the first rows, cannot see."""
    good = '{"text": "good"}\n' * 5000
    (tmp_path / "rows.jsonl").write_text(good + '{"txt": "bad"}\n')
    path = plan(tmp_path, pretrain(data="rows.jsonl"))
    assert call(toy, tmp_path, "check", path).returncode == 0
    made = call(toy, tmp_path, "run", path, "--json")
    assert made.returncode == 4, made.stderr
    error = json.loads(made.stdout)["error"]
    assert error["type"] == "DataError" and error["details"]["row"] == 5001 and "rows.jsonl" in error["details"]["file"]


def test_a_work_folder_that_cannot_be_used_ends_with_4(toy: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    made = call(toy, tmp_path, "run", plan(tmp_path, pretrain()), "--workdir", "taken")
    assert made.returncode == 4 and "taken" in made.stderr and "Traceback" not in made.stderr


def test_a_second_run_in_the_same_folder_ends_with_5(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, pretrain(steps=200, pause=0.05))
    first = subprocess.Popen(
        command("run", path), env=toy, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_for(tmp_path / "runs" / "plan" / "events.jsonl", "MetricLogged")
        made = call(toy, tmp_path, "run", path)
        assert made.returncode == 5 and "runs/plan" in made.stderr
    finally:
        first.terminate()
        first.communicate(timeout=60)


# ------------------------------------------------------------------ signals


def wait_for(path: Path, text: str, seconds: float = 60, step: str = "") -> None:
    """Wait until a line of ``path`` holds ``text`` (and names ``step``)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lines = path.read_text().splitlines() if path.exists() else []
        if any(text in line and f'"step": "{step}' in line for line in lines):
            return
        time.sleep(0.05)
    raise AssertionError(f"{text} did not appear in {path}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_a_checkpoint_and_the_same_command_continues(
    toy: dict[str, str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    whole = call(toy, tmp_path, "run", plan(tmp_path, pretrain(steps=60)), "--workdir", "whole", "--json")
    losses = history(json.loads(whole.stdout))

    path = plan(tmp_path, pretrain(steps=60, pause=0.05))
    first = subprocess.Popen(
        command("run", path, "--workdir", "cut"),
        env=toy, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(tmp_path / "cut" / "events.jsonl", "MetricLogged")
    first.send_signal(number)
    _, stderr = first.communicate(timeout=60)
    assert first.returncode == code
    assert "stopping as soon as a checkpoint is written" in stderr
    assert "run was cancelled" in stderr and "Traceback" not in stderr
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["status"] == "cancelled"

    second = call(toy, tmp_path, "run", path, "--workdir", "cut", "--json")
    assert second.returncode == 0, second.stderr
    assert history(json.loads(second.stdout)) == losses
    starts = (tmp_path / "cut" / "events.jsonl").read_text().count('"event": "MetricLogged"')
    assert starts == len(losses), "no step was computed twice"


def history(document: dict[str, Any]) -> list[float]:
    lines = (Path(document["steps"][0]["folder"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_ctrl_c_in_real_training_is_continued_on_the_same_curve(tmp_path: Path) -> None:
    """With the first-party plugins: pretraining, then SFT with LoRA, interrupted in SFT."""
    path = tmp_path / "plan.yaml"
    path.write_text(
        "schema: 1\nadapter: {name: lora, r: 4}\nsteps:\n"
        "  - pretrain: {max_steps: 3, limit: 12, hidden_size: 32, layers: 2, vocab_size: 400, batch_size: 2}\n"
        "  - sft: {max_steps: 120, limit: 60, batch_size: 2, max_length: 512}\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    whole = call(env, tmp_path, "run", path, "--workdir", "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    expected = json.loads(whole.stdout)

    first = subprocess.Popen(
        command("run", path, "--workdir", "cut"), env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "cut" / "events.jsonl", '"event": "MetricLogged"', seconds=110, step="sft")
    first.send_signal(signal.SIGINT)
    _, stderr = first.communicate(timeout=110)
    assert first.returncode == 130, stderr
    assert "Traceback" not in stderr

    second = call(env, tmp_path, "run", path, "--workdir", "cut", "--json")
    assert second.returncode == 0, second.stderr
    found = json.loads(second.stdout)
    assert [step["reused"] for step in found["steps"]] == [True, False]
    for one, other in zip(expected["steps"], found["steps"], strict=True):
        assert one["model"]["weights_hash"] == other["model"]["weights_hash"]
    events = [json.loads(line) for line in (tmp_path / "cut" / "events.jsonl").read_text().splitlines()]
    steps = [event["global_step"] for event in events if event["event"] == "MetricLogged" and event["step"] == "sft"]
    assert steps == list(range(1, 121)), "no step was computed twice, none is missing"


def test_json_of_a_cancelled_run_is_still_one_document(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, pretrain(steps=200, pause=0.05))
    run = subprocess.Popen(
        command("run", path, "--json"), env=toy, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "runs" / "plan" / "events.jsonl", "MetricLogged")
    run.send_signal(signal.SIGINT)
    stdout, _ = run.communicate(timeout=60)
    document = json.loads(stdout)
    assert run.returncode == document["exit_code"] == 130
    assert document["error"]["type"] == "RunCancelled"


def test_the_second_signal_ends_at_once(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, pretrain(steps=2, pause=30))
    run = subprocess.Popen(
        command("run", path), env=toy, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "runs" / "plan" / "events.jsonl", "MetricLogged")
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.poll() is None, "the first one waits for the step of work"
    begin = time.monotonic()
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=20)
    # a shell reports a process that died of SIGINT as 130
    assert run.returncode == -signal.SIGINT
    assert time.monotonic() - begin < 10


# ------------------------------------------------------------------ what the other commands print


def test_explain_writes_text_tree_and_json(toy: dict[str, str], tmp_path: Path) -> None:
    path = plan(tmp_path, pretrain(), sft())
    for name in ("text", "tree"):
        made = call(toy, tmp_path, "explain", path, "--format", name)
        assert made.returncode == 0, made.stderr
        assert "toy/causal" in made.stdout and "toy/sft" in made.stdout
    data = json.loads(call(toy, tmp_path, "explain", path, "--format", "json").stdout)
    assert [step["component"]["id"] for step in data["steps"]] == ["toy/causal", "toy/sft"]


def test_plugins_shows_state_and_reason(toy: dict[str, str], tmp_path: Path) -> None:
    made = call(toy, tmp_path, "plugins")
    assert made.returncode == 0, made.stderr
    for fact in ("toy", "loaded", "disabled", "TUNEKIT_DISABLE_PLUGINS", "toybench", "trainer pretrain"):
        assert fact in made.stdout
    document = json.loads(call(toy, tmp_path, "plugins", "--json").stdout)
    states = {record["name"]: record["state"] for record in document["plugins"]}
    assert states["toy"] == "loaded" and states["tunekit-trl"] == "disabled"
    mine = next(record for record in document["plugins"] if record["name"] == "toy")
    assert (mine["provider"], mine["version"], mine["api_version"]) == ("toy", "1.0", 1)
    assert "toy/dpo" in {component["id"] for component in document["components"]}


def test_plugins_marks_a_name_that_two_offer(toy: dict[str, str], tmp_path: Path) -> None:
    info = tmp_path / "site" / "twin-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twin\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[tunekit]\ntwin = twin_plugin\n")
    (tmp_path / "site" / "twin_plugin.py").write_text(
        "from tunekit.plugins import BenchmarkSpec, hookimpl\napi_version = 1\n"
        "@hookimpl\ndef tunekit_benchmarks():\n    return [BenchmarkSpec(name='toybench', target='a.b:C')]\n"
    )
    made = call(toy, tmp_path, "plugins")
    assert "several offer toybench: write twin/toybench" in made.stdout
    assert "several offer toybench: write toy/toybench" in made.stdout


def test_show_lists_every_option_with_type_default_and_help(toy: dict[str, str], tmp_path: Path) -> None:
    made = call(toy, tmp_path, "plugins", "show", "trainer", "align/dpo", "--json")
    document = json.loads(made.stdout)
    assert (document["id"], document["stage"], document["provider"]) == ("toy/dpo", "align", "toy")
    assert document["ready"] and document["file"].endswith("toy_plugin.py")
    options = {option["name"]: option for option in document["options"]}
    assert (options["rate"]["type"], options["rate"]["default"], options["rate"]["required"]) == ("number", 0.5, False)
    assert options["limit"]["type"] == "integer >= 1 | None" and options["on_bad_row"]["type"] == '"error" | "skip"'
    assert options["limit"]["help"] == "Use the first rows only."
    assert (options["limit"]["unit"], options["rate"]["unit"]) == ("rows", "")
    people = call(toy, tmp_path, "plugins", "show", "trainer", "dpo", "--stage", "align").stdout
    wanted = ("trainer align dpo", "toy/dpo", "rate  number, default 0.5", "None (rows), default None", "Use the first")
    for text in wanted:
        assert text in people


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("benchmrk", "toybench"), "unknown-kind", "benchmark"),
        (("benchmark", "toybnch"), "unknown-benchmark", "toybench"),
        (("trainer", "dqo"), "unknown-method", "align/dpo"),
        (("trainer", "dpo", "--stage", "algn"), "unknown-stage", "align"),
        (("trainer", "align/dpoo"), "unknown-method", "dpo"),
    ],
)
def test_show_names_the_nearest(
    toy: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], code: str, says: str
) -> None:
    made = call(toy, tmp_path, "plugins", "show", *arguments, "--json")
    error = json.loads(made.stdout)["error"]
    assert made.returncode == 2 and error["code"] == code
    assert says in error["suggestions"]


def test_show_gives_the_install_line_of_what_is_missing(toy: dict[str, str], tmp_path: Path) -> None:
    info = tmp_path / "site" / "needy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: needy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tunekit]\nneedy = needy_plugin\n")
    (tmp_path / "site" / "needy_plugin.py").write_text(
        "from tunekit.plugins import BenchmarkSpec, hookimpl\napi_version = 1\n@hookimpl\ndef tunekit_benchmarks():\n"
        "    return [BenchmarkSpec(name='needy', target='a.b:C',requires=('pluggy>=99','rich>=1'), options='a.b:O')]\n"
    )
    made = call(toy, tmp_path, "plugins", "show", "benchmark", "needy")
    assert made.returncode == 0, made.stderr
    assert "pip install 'pluggy>=99'" in made.stdout and "rich>=1  met" in made.stdout
    assert "Its options cannot be read" in made.stdout


def test_doctor_reports_this_machine() -> None:
    made = subprocess.run(command("doctor", "--json"), capture_output=True, text=True, timeout=300)
    document = json.loads(made.stdout)
    assert made.returncode == document["exit_code"]
    assert document["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert set(document["tunekit"]) >= {"tunekit", *FIRST_PARTY.split(",")}
    assert document["hardware"]["usable_cores"] >= 1 and document["disk"]["free_bytes"] > 0
    assert document["packages"]["torch"] and isinstance(document["torch"]["cpu_bf16"], bool | None)
    assert document["ok"] == (not [problem for problem in document["problems"] if problem["level"] == "error"])


def test_doctor_for_people() -> None:
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "120"})
    assert result.exit_code in (0, 1)
    for fact in ("Versions", "Machine", "torch", "memory", "free in", "network"):
        assert fact in result.output


@pytest.mark.parametrize(
    ("versions", "accelerator", "fixes"),
    [
        ({"torch": "2.13.0+cpu", "transformers": "5.23.0", "gptqmodel": "7.6.0", "optimum": "2.3.0",
          "numpy": "2.2.6"}, False, []),
        ({"transformers": "4.57.6"}, True, ["pip install 'transformers>=5.15,<6'"]),
        ({"gptqmodel": "7.7.0", "torch": "2.13.0", "optimum": "2.3.0"}, True, ["pip install 'gptqmodel==7.6.0'"]),
        ({"gptqmodel": "7.7.0", "torch": "2.14.1", "optimum": "2.3.0"}, True, []),
        ({"gptqmodel": "7.6.0", "numpy": "2.4.6", "optimum": "2.3.0"}, True, ["pip install 'numpy==2.2.6'"]),
        ({"gptqmodel": "7.6.0", "numpy": "2.2.6"}, True, ["pip install 'optimum>=2.3,<3'"]),
        ({"liger-kernel": "0.6"}, False, ["pip uninstall liger-kernel"]),
        ({"llmcompressor": "0.14", "transformers": "5.23.0"}, True,
         ["install llmcompressor in an environment of its own"]),
    ],
)  # fmt: skip
def test_doctor_knows_the_bad_pairs(versions: dict[str, str], accelerator: bool, fixes: list[str]) -> None:
    assert [problem.fix for problem in doctor.known_bad(versions, accelerator=accelerator)] == fixes


def test_doctor_compares_installed_versions_with_what_packages_ask_for() -> None:
    asks = {"acme": ["pluggy>=99", "not-installed-anywhere", "rich>=1", "torch>=99; extra == 'gpu'"]}
    found = doctor.unmet_requirements(["acme"], asks.get)
    assert [problem.fix for problem in found] == ["pip install 'pluggy>=99'", "pip install 'not-installed-anywhere'"]
    assert "is installed" in found[0].why and "is not installed" in found[1].why


# ------------------------------------------------------------------ rendering


def test_json_types_of_anything() -> None:
    made = render.plain({"path": Path("/x"), "nan": float("nan"), "rows": ({"a": 1.5},), "flag": True, 3: None})
    assert made == {"path": "/x", "nan": None, "rows": [{"a": 1.5}], "flag": True, "3": None}


def test_what_libraries_and_children_print_does_not_disturb_the_document() -> None:
    code = (
        "import os, subprocess, sys\n"
        "from tunekit.cli.render import only_json_on_stdout, write_json\n"
        "with only_json_on_stdout(True):\n"
        "    print('from python'); os.write(1, b'from C\\n'); subprocess.run(['echo', 'from a child'])\n"
        "write_json({'ok': True})\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(made.stdout) == {"ok": True}
    for text in ("from python", "from C", "from a child"):
        assert text in made.stderr


def test_an_error_for_people_says_what_to_type() -> None:
    import io

    from rich.console import Console

    error = UnknownNameError(
        "No method 'dqo'.", code="unknown-method", asked="dqo", found="dpo, kto", suggestions=["dpo"], fix="[use] dpo"
    )
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=80, _environ={})
        console.print(render.error_view(error, console))
        text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
        for part in ("No method 'dqo'.", "did you mean", "dpo, kto", "[use] dpo"):
            assert part in text
