"""The public API equals its snapshots in tests/api, and a change that breaks users of the last release is noticed.

A change of the API is made by changing its snapshot with it, so that a review sees it:

    TUNEKIT_UPDATE_GOLDEN=1 python -m pytest tests/test_api_freeze.py
"""

from __future__ import annotations

import difflib
import enum
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import public_api
import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "api"
UPDATE = "TUNEKIT_UPDATE_GOLDEN=1 python -m pytest tests/test_api_freeze.py"
SCRIPT = ROOT / "scripts" / "check_api.py"


@cache
def package() -> griffe.Object:
    return public_api.load()


# ---------------------------------------------------------------- what is frozen


def cli_entries() -> list[str]:
    """One entry per command, with its arguments and options, and one per exit code."""
    import typer

    from tunekit.cli.app import app
    from tunekit.cli.exits import ExitCode

    commands = list(_commands(typer.main.get_command(app), "tunekit"))
    return [*commands, *(f"exit code {int(code)}  # {code.name}" for code in ExitCode)]


def _commands(command: Any, path: str) -> Iterator[str]:
    lines = [path]
    for parameter in command.params:
        spelling = "/".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            spelling = parameter.name.upper()
        words = ["flag" if getattr(parameter, "is_flag", False) else _kind(parameter)]
        words += ["required"] if parameter.required else []
        words += ["repeatable"] if parameter.multiple or parameter.nargs == -1 else []
        lines.append(f"    {spelling}: {', '.join(words)}")
    yield "\n".join(lines)
    for name, child in sorted(getattr(command, "commands", {}).items()):
        if not child.hidden:
            yield from _commands(child, f"{path} {name}")


def _kind(parameter: Any) -> str:
    """The type of a value. Typer brings its own click now, whose parameters have another shape."""
    described = getattr(parameter, "type_descriptor", None)
    if described is None:
        choices = getattr(parameter.type, "choices", None)
        return "|".join(str(getattr(c, "value", c)) for c in choices) if choices else str(parameter.type.name)
    annotation = described.annotation
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "|".join(str(member.value) for member in annotation)
    return {"Path": "path", "str": "text", "int": "integer"}.get(annotation.__name__, annotation.__name__)


def option_entries() -> list[str]:
    """One entry per option of every first-party component: what plan files and scripts may write."""
    from tunekit import Session
    from tunekit.settings import Settings

    first_party = {"tunekit"}
    for project in ROOT.glob("plugins/*/pyproject.toml"):
        first_party.add(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["name"])
    session = Session(settings=Settings())
    entries = []
    for entry in session.components():
        component = entry.component
        if component.provider not in first_party or component.provider == "tunekit-example":
            continue
        head = " ".join(filter(None, (component.kind, component.stage, component.id)))
        entries.append(head)
        model = session.options_model(component)
        for name, info in sorted((model.model_fields if model else {}).items()):
            shown = str(info.annotation) if not isinstance(info.annotation, type) else info.annotation.__name__
            shown = re.sub(r"\btyping\.|\bcollections\.abc\.", "", shown)
            shown = re.sub(r" at 0x[0-9a-f]+", "", shown)
            rules = "".join(f" {rule}" for rule in info.metadata if " at 0x" not in repr(rule))
            default = " (required)" if info.is_required() else f" = {_default(info)}"
            entries.append(f"{head}.{name}: {shown}{rules}{default}")
    return entries


def _default(info: Any) -> str:
    value = info.get_default(call_default_factory=True)
    return str(value.value) if hasattr(value, "value") else repr(value)


SUBJECTS = {
    **{facade: (lambda facade=facade: public_api.describe(package(), facade)) for facade in public_api.FACADES},
    "hooks": lambda: public_api.describe_hooks(package()),
    "records": lambda: public_api.describe_records(package()),
    "cli": cli_entries,
    "options": option_entries,
    "codes": lambda: public_api.codes(ROOT / "src", *ROOT.glob("plugins/*/src")),
}

ABOUT = {
    "hooks": "The hooks of the plugin API",
    "records": "Types that public functions take or give",
    "cli": "The command line",
    "options": "The options of tunekit's own components",
    "codes": "The codes of errors, notices and findings",
}


def written(subject: str, entries: list[str]) -> str:
    about = ABOUT.get(subject, f"The public names of {subject}")
    return f"# {about}. Written by: {UPDATE}\n\n" + "\n".join(entries) + "\n"


def by_name(text: str) -> dict[str, str]:
    """Name to entry of a snapshot. An entry goes on over lines that are indented or close a bracket."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#") or not line:
            continue
        if line.startswith((" ", ")")):
            found[name] += "\n" + line
        else:
            name = re.split(r"[(:=#]| {2}", line.removeprefix("class "))[0].strip()
            found[name] = line
    return found


def changes(old: str, new: str) -> list[str]:
    """What kind of change each difference is."""
    before, after = by_name(old), by_name(new)
    said = [f"REMOVED (breaks users): {name}" for name in before if name not in after]
    said += [f"CHANGED (may break users): {name}" for name in after if name in before and before[name] != after[name]]
    said += [f"added: {name}" for name in after if name not in before]
    return said or ["another order"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_public_api_is_the_one_of_its_snapshot(subject: str) -> None:
    path = HERE / f"{subject}.txt"
    now = written(subject, SUBJECTS[subject]())
    if os.environ.get("TUNEKIT_UPDATE_GOLDEN"):
        path.write_text(now, encoding="utf-8")
        return
    then = path.read_text(encoding="utf-8") if path.exists() else ""
    if now != then:
        diff = "\n".join(
            difflib.unified_diff(then.splitlines(), now.splitlines(), f"tests/api/{path.name}", "the code", lineterm="")
        )
        kinds = "\n".join(f"  {line}" for line in changes(then, now))
        pytest.fail(
            f"The public API differs from its snapshot:\n{kinds}\n\n{diff}\n\n"
            f"What is removed or changed has to go through a deprecation (docs/explanation/stability.md).\n"
            f"If the change is wanted: {UPDATE}",
            pytrace=False,
        )


def test_no_snapshot_is_left_over() -> None:
    assert {path.name for path in HERE.iterdir()} == {f"{subject}.txt" for subject in SUBJECTS}


@pytest.mark.parametrize("facade", public_api.FACADES)
def test_the_snapshot_knows_every_name_that_can_be_imported(facade: str) -> None:
    names = set(importlib.import_module(facade).__all__) - {"__version__"}
    assert names == set(public_api.public_objects(package(), facade))


def test_every_facade_is_frozen() -> None:
    """The public modules are those that first-party plugins may import, and the top of the package."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = [each for each in tools["importlinter"]["contracts"] if each["id"] == "public-api"]
    modules = {f"tunekit.{path.stem}" for path in (ROOT / "src" / "tunekit").glob("*.py") if path.stem != "__init__"}
    modules |= {f"tunekit.{path.parent.name}" for path in (ROOT / "src" / "tunekit").glob("*/__init__.py")}
    public = {name for name in modules - set(contract["forbidden_modules"]) if "._" not in name}
    assert public == set(public_api.FACADES) - {"tunekit", "tunekit.plugins.hf"}


def test_what_is_said_of_a_change() -> None:
    old = "# x\n\nclass A  # @dataclass\nA.x: int = 1\nA.run(\n    a: int,\n) -> int\ngone()\n"
    new = "# x\n\nclass A  # @dataclass\nA.x: int = 2\nA.run(\n    a: int,\n    b: int,\n) -> int\nfresh()\n"
    assert changes(old, new) == [
        "REMOVED (breaks users): gone",
        "CHANGED (may break users): A.x",
        "CHANGED (may break users): A.run",
        "added: fresh",
    ]
    cli = "tunekit run\n    PLAN: path, required\n    --seed: integer\n"
    assert changes(cli, cli.replace("--seed", "--sed")) == ["CHANGED (may break users): tunekit run"]


# ---------------------------------------------------------------- against the last release

FACADE = """\
_WHERE = {{"tunekit._private": ({names}), "tunekit.options": ("Bag",)}}
"""
PRIVATE = """\
from tunekit.options import Bag


class Base:
    def ask(self, row, answer="", *, tries={tries}):
        return row

    def test_it(self, fixture{more}):
        pass


class Worker(Base):
    def run(self, ctx{more}):
        return ctx


def make(name, *, seed=0):
    return name
"""
PLUGIN = "class Trainer:\n    def run(self, ctx):\n        return ctx\n"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A repository with a release v1.0 of a package with a lazy facade, and of a plugin."""
    write(tmp_path)
    plugin = tmp_path / "plugins" / "tunekit-toy" / "src" / "tunekit_toy"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("")
    (plugin / "trainer.py").write_text(PLUGIN)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "release")
    return tmp_path


def write(root: Path, names: str = '"Worker", "make"', more: str = "", tries: str = "3") -> None:
    source = root / "src" / "tunekit"
    source.mkdir(parents=True, exist_ok=True)
    (source / "__init__.py").write_text(FACADE.format(names=names))
    (source / "_private.py").write_text(PRIVATE.format(more=more, tries=tries))
    (source / "options.py").write_text("class Bag:\n    size: int = 1\n")


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


def check(root: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--root", root], capture_output=True, text=True, timeout=120, check=False
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_without_a_tag_there_is_nothing_to_compare_with(release: Path) -> None:
    git(release, "tag", "nightly-1")
    code, said = check(release)
    assert code == 0
    assert "no tag v* leads here" in said


def test_an_addition_breaks_nobody(release: Path) -> None:
    git(release, "tag", "v1.0")
    write(release, more=", *, cancel=None")
    (release / "src" / "tunekit" / "_private.py").open("a").write("\n\ndef fresh():\n    return 1\n")
    new = release / "plugins" / "tunekit-new" / "src" / "tunekit_new"
    new.mkdir(parents=True)
    (new / "__init__.py").write_text("")
    assert check(release) == (0, "api: nothing breaks users of v1.0\n")


def test_breakages_behind_a_lazy_facade_are_seen(release: Path) -> None:
    git(release, "tag", "v1.0")
    write(release, names='"Worker",', more=", cancel", tries="5")
    (release / "src" / "tunekit" / "options.py").write_text("class Bag:\n    length: int = 1\n")
    (release / "plugins" / "tunekit-toy" / "src" / "tunekit_toy" / "trainer.py").write_text(PLUGIN.replace("ctx", "c"))
    code, said = check(release)
    assert code == 1
    found = [line.partition("v1.0: ")[2] for line in said.splitlines() if "v1.0: " in line]
    assert sorted(found) == [
        "tunekit.Bag.size: Public object was removed",
        "tunekit.Worker.ask(tries): Parameter default was changed: 3 -> 5",
        "tunekit.Worker.run(cancel): Parameter was added as required",
        "tunekit.make: Public object was removed",
        "tunekit_toy.trainer.Trainer.run(c): Parameter was added as required",
        "tunekit_toy.trainer.Trainer.run(ctx): Parameter was removed",
    ]


def test_known_breakages_need_a_reason_and_must_still_be_there(release: Path) -> None:
    git(release, "tag", "v1.0")
    write(release, names='"Worker",')
    listed = release / "scripts" / "known_breakages.toml"
    listed.parent.mkdir()
    what = 'what = "tunekit.make: Public object was removed"'
    listed.write_text(f'[[breakage]]\n{what}\nreason = "announced in 0.8"\n')
    assert check(release) == (0, "api: nothing breaks users of v1.0; 1 known breakages\n")

    write(release)
    code, said = check(release)
    assert code == 1
    assert "remove it: tunekit.make: Public object was removed" in said

    listed.write_text(f'[[breakage]]\n{what}\nreason = " "\n')
    done = subprocess.run([sys.executable, SCRIPT, "--root", release], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no reason" in done.stderr


def test_the_build_compares_with_the_last_release() -> None:
    assert "make api" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^api:.*\n\t\$\(BIN\)/python scripts/check_api\.py$", (ROOT / "Makefile").read_text(), re.M)
