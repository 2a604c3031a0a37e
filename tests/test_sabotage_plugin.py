"""Plugins with one bug each, as real distributions: the named test of PluginSuite catches it.

The honest one passes. Every check has at least one bug here, so none can be empty.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tunekit.testing import fake_dist
from tunekit.testing.checks import CHECKS

PLUGIN = """
from tunekit.plugins import TrainerSpec, hookimpl

api_version = 1


@hookimpl
def tunekit_trainers():
    return [
        TrainerSpec(
            name="toy",
            stage="align",
            target="PACKAGE.component:Trainer",
            options="PACKAGE.options:ToyOptions",
            summary="Does nothing, for tests",
            data=("preference",),
            requires=("packaging>=24",),
        )
    ]


@hookimpl
def tunekit_check_plan(plan):
    return []
"""

OPTIONS = '''
from tunekit.plugins import TrainOptions


class ToyOptions(TrainOptions):
    beta: float = 0.1
    """Strength of the penalty."""
'''

COMPONENT = """
class Trainer:
    def run(self, ctx):
        raise NotImplementedError
"""


@dataclass(frozen=True)
class Bug:
    caught_by: str
    plugin: tuple[str, str] = ("", "")
    """What is replaced in the record module; ("", text) puts text in front."""
    options: tuple[str, str] = ("", "")
    component: tuple[str, str] = ("", "")
    requires: tuple[str, ...] = ("packaging>=24",)
    says: tuple[str, ...] = field(default=())
    """What the failure must name."""


BUGS = {
    "fails-on-import": Bug("entry_point_loads", plugin=("", "import a_package_that_is_not_there"), says=("a_package",)),
    "imports-torch": Bug("entry_point_is_light", plugin=("", "import torch"), says=("imports torch",)),
    "imports-options": Bug(
        "entry_point_is_light", plugin=("", "from PACKAGE.options import ToyOptions"), says=("pydantic",)
    ),
    "imports-when-asked": Bug(
        "entry_point_is_light",
        plugin=("    return [\n        T", "    import numpy\n    return [\n        T"),
        says=("registration hooks import numpy",),
    ),
    "sets-environment": Bug(
        "import_changes_nothing",
        plugin=("", 'import os\nos.environ["TOKENIZERS_PARALLELISM"] = "maybe"'),
        says=("os.environ TOKENIZERS_PARALLELISM", "-> maybe"),
    ),
    "configures-logging": Bug(
        "import_changes_nothing",
        plugin=("", "import logging\nlogging.basicConfig(level=logging.INFO)"),
        says=("logging root level: WARNING -> INFO", "logging root handlers: added"),
    ),
    "silences-warnings": Bug(
        "import_changes_nothing", plugin=("", 'import warnings\nwarnings.simplefilter("ignore")'), says=("filters",)
    ),
    "takes-signals": Bug(
        "import_changes_nothing",
        plugin=("", "import signal\nsignal.signal(signal.SIGTERM, lambda *a: None)"),
        says=("signal handler SIGTERM",),
    ),
    "prints": Bug("import_is_silent", plugin=("", 'print("Acme RL, thank you for using it")'), says=("Acme RL",)),
    "prints-below-python": Bug(
        "import_is_silent", plugin=("", 'import os\nos.write(2, b"loading kernels")'), says=("loading kernels",)
    ),
    "states-no-api": Bug(
        "api_version_is_stated", plugin=("api_version = 1", ""), says=("add the line: api_version = 1",)
    ),
    "next-api": Bug("api_version_is_stated", plugin=("api_version = 1", "api_version = 2"), says=("speaks 1",)),
    "wraps-registration": Bug(
        "session_loads_it",
        plugin=("@hookimpl\ndef tunekit_trainers():", "@hookimpl(wrapper=True)\ndef tunekit_trainers():\n    yield"),
        says=("cannot be wrapped",),
    ),
    "misspelt-hook": Bug(
        "hook_names_are_known", plugin=("tunekit_trainers", "tunekit_trainer"), says=("did you mean tunekit_trainers?",)
    ),
    "forgotten-mark": Bug(
        "hook_names_are_known",
        plugin=("@hookimpl\ndef tunekit_check_plan", "def tunekit_check_plan"),
        says=("not marked with @hookimpl",),
    ),
    "wrong-argument": Bug(
        "hook_signatures_fit", plugin=("check_plan(plan)", "check_plan(pipeline)"), says=("no argument 'pipeline'",)
    ),
    "keyword-argument": Bug(
        "hook_signatures_fit", plugin=("check_plan(plan)", "check_plan(**all)"), says=("plain arguments only",)
    ),
    "default-in-hook": Bug(
        "hooks_have_no_defaults", plugin=("check_plan(plan)", "check_plan(plan=None)"), says=("'plan' a default",)
    ),
    "misspelt-stage": Bug("specs_are_valid", plugin=('"align"', '"aline"'), says=("did you mean 'align'?",)),
    "unknown-shape": Bug("specs_are_valid", plugin=('"preference"', '"pairs"'), says=("shape 'pairs'",)),
    "no-summary": Bug("summaries_are_filled", plugin=("Does nothing, for tests", ""), says=("has no summary",)),
    "offered-twice": Bug(
        "names_are_free",
        plugin=("return [", 'return [\n        TrainerSpec(name="toy", stage="align", target="a:b"),'),
        says=("offered twice",),
    ),
    "name-of-tunekit": Bug(
        "names_are_free",
        plugin=(
            "@hookimpl\ndef tunekit_check_plan(plan):",
            "from tunekit.plugins import DatasetSpec\n\n@hookimpl\ndef tunekit_datasets():\n"
            '    return [DatasetSpec(name="stdlib-text", schema="text", target="PACKAGE.component:Trainer")]\n\n'
            "@hookimpl\ndef tunekit_check_plan(plan):",
        ),
        says=("a name of tunekit's own",),
    ),
    "requirement-not-in-metadata": Bug("requirements_are_covered", requires=(), says=("'packaging>=24'", "pyproject")),
    "requirement-disagrees": Bug(
        "requirements_are_covered", requires=("packaging>=20",), says=("pip may install packaging 20", "agree")
    ),
    "requirement-garbled": Bug(
        "requirements_are_covered", plugin=("packaging>=24", "packaging=>24"), says=("cannot be read",)
    ),
    "options-missing": Bug("options_can_be_imported", options=("ToyOptions", "OtherOptions"), says=("ToyOptions",)),
    "options-no-model": Bug(
        "options_can_be_imported", options=("(TrainOptions)", ""), says=("not a pydantic model",)
    ),
    "options-import-numpy": Bug("options_are_light", options=("", "import numpy"), says=("imports numpy",)),
    "default-of-wrong-type": Bug("options_survive_json", options=("0.1", '"0.1"'), says=("of beta is refused",)),
    "default-not-json": Bug("options_survive_json", options=("0.1", 'float("inf")'), says=("beta",)),
    "option-without-schema": Bug(
        "options_have_a_schema",
        options=("class ToyOptions(TrainOptions):", "class ToyOptions(TrainOptions, arbitrary_types_allowed=True):\n"
                 "    kind: slice | None = None\n    \"\"\"Which part.\"\"\""),
        says=("gives no JSON schema",),
    ),
    "takes-any-option": Bug(
        "options_refuse_unknown_names",
        options=("class ToyOptions(TrainOptions):", 'class ToyOptions(TrainOptions, extra="ignore"):'),
        says=("takes options that it does not have",),
    ),
    "undocumented-option": Bug(
        "options_are_documented", options=('    """Strength of the penalty."""\n', ""), says=("description for beta",)
    ),
    "target-missing": Bug("targets_can_be_imported", component=("class Trainer", "class Other"), says=("'Trainer'",)),
    "target-without-run": Bug(
        "targets_have_the_right_shape", component=("def run(", "def train("), says=("no method run(ctx)",)
    ),
    "target-run-too-long": Bug(
        "targets_have_the_right_shape", component=("(self, ctx)", "(self, model, data)"), says=("(self, model, data)",)
    ),
    "target-configures-logging": Bug(
        "components_change_nothing",
        component=("", "import logging\nlogging.basicConfig(level=10)"),
        says=("importing the targets", "logging root level"),
    ),
    "options-set-environment": Bug(
        "components_change_nothing",
        options=("", 'import os\nos.environ["CUDA_VISIBLE_DEVICES"] = "0"'),
        says=("importing the options models", "CUDA_VISIBLE_DEVICES"),
    ),
    "target-wants-arguments": Bug(
        "targets_have_the_right_shape",
        component=("    def run", "    def __init__(self, options):\n        pass\n\n    def run"),
        says=("cannot be called as Trainer()",),
    ),
}  # fmt: skip

HONEST = "acme-honest"


def changed(text: str, change: tuple[str, str], package: str) -> str:
    old, new = change
    if old:
        assert old in text, old
        text = text.replace(old, new)
    elif new:
        text = f"{new}\n{text}"
    return text.replace("PACKAGE", package)


def install(site: Path, name: str, bug: Bug) -> None:
    package = name.replace("-", "_")
    fake_dist(
        site,
        name,
        source=changed(PLUGIN, bug.plugin, package),
        requires=bug.requires,
        files={
            "options.py": changed(OPTIONS, bug.options, package),
            "component.py": changed(COMPONENT, bug.component, package),
        },
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[str, str]]:
    """(distribution, test) to outcome and message, from one pytest in a process of its own."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("tests")
    lines = ["from tunekit.testing import PluginSuite\n"]
    install(site, HONEST, Bug(""))
    classes = {HONEST: "TestHonest"}
    for number, (name, bug) in enumerate(BUGS.items()):
        install(site, f"bug-{name}", bug)
        classes[f"bug-{name}"] = f"TestBug{number}"
    lines += [f"class {owner}(PluginSuite):\n    name = {name!r}\n" for name, owner in classes.items()]
    file = folder / "test_bugs.py"
    file.write_text("\n".join(lines))
    wanted = [f"{file}::{classes[f'bug-{name}']}::test_{bug.caught_by}" for name, bug in BUGS.items()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull,
         f"--rootdir={folder}", "-p", "tunekit.testing.pytest", f"--junitxml={folder}/out.xml",
         f"{file}::TestHonest", *wanted],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    names = {owner: name for name, owner in classes.items()}
    found = {}
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        owner = names[case.attrib["classname"].rpartition(".")[2]]
        result = next(iter(case), None)
        outcome = "passed" if result is None else result.tag
        found[owner, case.attrib["name"]] = (outcome, "" if result is None else result.attrib.get("message", ""))
    return found


@pytest.mark.parametrize("name", BUGS)
def test_the_bug_is_caught(name: str, outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    bug = BUGS[name]
    outcome, message = outcomes[f"bug-{name}", f"test_{bug.caught_by}"]
    assert outcome == "failure", message
    for text in bug.says:
        assert text in message


@pytest.mark.parametrize("check", CHECKS)
def test_the_honest_one_passes(check: str, outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    assert outcomes[HONEST, f"test_{check}"] == ("passed", "")


def test_every_check_has_a_bug() -> None:
    assert {bug.caught_by for bug in BUGS.values()} == set(CHECKS)
