"""``tunekit plugin new``: what it writes passes its own tests and checks, and nothing is ever overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunekit._scaffold import KINDS, Scaffolded, scaffold
from tunekit.cli.app import app
from tunekit.cli.component import KINDS as COMPONENT_KINDS
from tunekit.errors import OptionsError
from tunekit.testing import warm

SLOW = {"adapter", "benchmark", "exporter", "quantizer", "trainer"}
BY_SPEED = [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in sorted(KINDS)]


def python(*arguments: str | Path, cwd: Path, timeout: int = 300, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scaffolded]:
    """One distribution of each kind."""
    home = tmp_path_factory.mktemp("written")
    return {kind: scaffold(f"acme-{kind}s", kind, folder=home / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def site(written: dict[str, Scaffolded], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them installed, from wheels."""
    folder = tmp_path_factory.mktemp("site")
    made = python(
        "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-t", folder,
        *(each.folder for each in written.values()), cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


def test_there_is_a_template_for_every_kind_but_short_names() -> None:
    assert set(KINDS) == set(COMPONENT_KINDS) - {"model", "dataset"}


@pytest.mark.parametrize("kind", BY_SPEED)
def test_its_tests_pass_as_generated(kind: str, written: dict[str, Scaffolded], site: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    env = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if kind in SLOW:
        made = warm.run(command, env=env, cwd=written[kind].folder)
    else:  # nothing heavy may be needed
        made = python(*command, cwd=written[kind].folder, **env)
    assert made.returncode == 0, made.stdout[-6000:] + made.stderr[-2000:]
    cases = [(case.get("classname", ""), case.get("name", "")) for case in ElementTree.parse(report).iter("testcase")]
    classes = {owner.rpartition(".")[2] for owner, _ in cases}
    wanted = {"TestPlugin"} | ({f"Test{kind.capitalize()}s"} if KINDS[kind]["suite"] else set())
    assert wanted <= classes, "the suite of the plugin and the one of its kind ran"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_its_code_is_clean(kind: str, written: dict[str, Scaffolded]) -> None:
    for command in (("check",), ("format", "--check", "--diff")):
        made = python("-m", "ruff", *command, "--no-cache", cwd=written[kind].folder)
        assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.slow
def test_its_types_are_right(written: dict[str, Scaffolded], tmp_path: Path) -> None:
    sources = [each.folder / "src" for each in written.values()]
    packages = [source / each.package for source, each in zip(sources, written.values(), strict=True)]
    made = python(
        "-m", "mypy", "--config-file", written["trainer"].folder / "pyproject.toml", "--cache-dir", tmp_path, *packages,
        cwd=tmp_path, MYPYPATH=os.pathsep.join(map(str, sources)),
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_project_file_says_what_is_there(kind: str, written: dict[str, Scaffolded]) -> None:
    made = written[kind]
    project = tomllib.loads((made.folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == made.distribution == f"acme-{kind}s"
    assert project["project"]["entry-points"]["tunekit"] == {made.distribution: f"{made.package}.plugin"}
    assert "tunekit>=0.1,<0.2" in project["project"]["dependencies"]
    files = set(made.files)
    expected = {"plugin.py", "__init__.py", "py.typed", f"{kind}.py"}
    expected |= {"options.py"} if KINDS[kind]["options"] else set()
    assert {f"src/{made.package}/{name}" for name in expected} <= files
    assert {"README.md", "LICENSE", ".gitignore", ".github/workflows/ci.yml", "conftest.py"} <= files
    assert f"tests/test_{made.package}.py" in files
    for file in files:
        text = (made.folder / file).read_text()
        assert "{%" not in text and "{{ " not in text.replace("${{ matrix.python }}", ""), file


@pytest.mark.parametrize("name", ["x", "acme-train-2", "tunekit-data", "acme-options"])
def test_any_allowed_name_gives_code_without_clashes(name: str, tmp_path: Path) -> None:
    """A component called ``train`` or ``data`` must not hide ``TrainOptions`` or ``DataOptions``."""
    for kind in KINDS:
        scaffold(name, kind, folder=tmp_path / kind)
    made = python("-m", "ruff", "check", "--no-cache", "--isolated", "--select", "F", ".", cwd=tmp_path)
    assert made.returncode == 0, made.stdout
    code = f"import {name.replace('-', '_')}.options as m; print([n for n in vars(m) if n.endswith('Options')])"
    made = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "trainer" / "src"))
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("name", "kind", "code", "says"),
    [
        ("Acme Trivia", "benchmark", "plugin-name", "acme-trivia"),
        ("acme_trivia", "benchmark", "plugin-name", "acme-trivia"),
        ("acme--trivia", "benchmark", "plugin-name", "acme-trivia"),
        ("2fast", "benchmark", "plugin-name", "fast"),
        ("../up", "benchmark", "plugin-name", "up"),
        ("json", "benchmark", "plugin-name", "acme-json"),
        ("tunekit", "benchmark", "plugin-name", "acme-tunekit"),
        ("acme-trivia", "benchmrk", "unknown-kind", "benchmark"),
        ("acme-evaluate", "step", "component-name", "--name"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, kind: str, code: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError) as caught:
        scaffold(name, kind, folder=tmp_path / "new")
    assert caught.value.code == code and says in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["folder", "file", "link"])
def test_nothing_is_overwritten(taken: str, tmp_path: Path) -> None:
    target = tmp_path / "acme-trivia"
    if taken == "folder":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    elif taken == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = sorted(map(str, tmp_path.rglob("*")))
    with pytest.raises(OptionsError) as caught:
        scaffold("acme-trivia", "benchmark", folder=target)
    assert caught.value.code == "folder-not-empty" and "--folder" in caught.value.fix
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    made = scaffold("acme-trivia", "benchmark", folder=tmp_path, component="quiz", author='Ann "A." Ace')
    assert (tmp_path / "pyproject.toml").is_file() and made.component == "quiz"
    assert tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["authors"] == [{"name": 'Ann "A." Ace'}]
    assert 'Ann "A." Ace' in (tmp_path / "LICENSE").read_text()


def test_without_copier_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['copier'] = None\n"
        "from tunekit.cli import main\n"
        "main(['plugin', 'new', 'acme-trivia', '--kind', 'benchmark', '--json'])\n"
    )
    made = python("-c", code, cwd=tmp_path)
    document = json.loads(made.stdout)
    assert made.returncode == document["exit_code"] == 1
    assert document["error"]["type"] == "MissingDependencyError"
    assert document["error"]["fix"] == "pip install 'tunekit[testing]'"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("group", ["plugin", "plugins"])
def test_the_command_says_what_it_wrote_and_what_comes_next(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [group, "new", "acme-trivia", "--kind", "benchmark"])
    assert result.exit_code == 0, result.output
    for line in ("cd acme-trivia", "pip install -e '.[test]'", "pytest", "src/acme_trivia/benchmark.py"):
        assert line in result.output
    assert (tmp_path / "acme-trivia" / "pyproject.toml").is_file()


def test_the_command_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [sys.executable, "-m", "tunekit.cli", "plugin", "new", "acme-trivia", "--kind", "tracker", "--json"]
    made = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    document = json.loads(made.stdout)
    assert document["ok"] and document["package"] == "acme_trivia" and document["component"] == "trivia"
    assert all((tmp_path / "acme-trivia" / file).is_file() for file in document["files"])
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and json.loads(again.stdout)["error"]["code"] == "folder-not-empty"
