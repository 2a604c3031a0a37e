"""Real plugin distributions, some of them bad, in a fresh interpreter: everything else works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

GOOD = """
from tunekit.plugins import TrainerSpec, BenchmarkSpec, hookimpl

api_version = 1

@hookimpl
def tunekit_trainers():
    return [TrainerSpec(name={name!r}, stage="align", target="{module}:Trainer", data=("preference",))]
"""

TRAINER = """
class Trainer:
    def run(self, ctx):
        raise NotImplementedError
"""


def install(site: Path, dist: str, version: str, source: str, *, point: str = "") -> None:
    """A distribution as pip leaves it: a module, and metadata with an entry point."""
    module = dist.replace("-", "_") + "_plugin"
    (site / f"{module}.py").write_text(textwrap.dedent(source))
    info = site / f"{dist.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[tunekit]\n{point or dist} = {module}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "acme-crash", "1.0", "import sys\nraise RuntimeError('the licence server is down')\n")
    install(folder, "acme-exit", "1.1", "import sys\nsys.exit(3)\n")
    install(folder, "acme-gone", "1.2", "import a_package_that_is_not_there\n")
    install(
        folder,
        "acme-future",
        "9.0",
        GOOD.format(name="future", module="x").replace("api_version = 1", "api_version = 99"),
    )
    install(folder, "acme-rl", "2.0", GOOD.format(name="twice", module="acme_rl_plugin") + TRAINER)
    install(folder, "other-rl", "3.0", GOOD.format(name="twice", module="other_rl_plugin") + TRAINER)
    install(
        folder,
        "acme-default",
        "4.0",
        GOOD.format(name="d", module="x") + "\n@hookimpl\ndef tunekit_check_plan(plan=None):\n    return []\n",
    )
    return folder


def run(site: Path, code: str, **env: str) -> Any:
    """The JSON that ``code`` prints in an interpreter that has the distributions of ``site``."""
    full = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))), **env}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=full,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PRELUDE = """
import json, sys
from tunekit import Pipeline, default_session
from tunekit.errors import AmbiguousNameError, UnknownNameError
session = default_session()
"""


def test_what_was_found_and_what_became_of_it(site: Path) -> None:
    found = run(
        site,
        PRELUDE
        + """
print(json.dumps({r.provider: [r.version, r.state, r.reason, bool(r.traceback)] for r in session.plugins()}))
""",
    )
    assert found["acme-crash"] == ["1.0", "broken", "RuntimeError: the licence server is down", True]
    assert found["acme-exit"] == ["1.1", "broken", "SystemExit: 3", True]
    assert found["acme-gone"][:3] == [
        "1.2",
        "broken",
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
    ]
    assert found["acme-future"][1] == "incompatible" and "plugin API 99" in found["acme-future"][2]
    assert found["acme-default"][1] == "broken" and "default value" in found["acme-default"][2]
    assert found["acme-rl"][:3] == ["2.0", "loaded", ""] and found["other-rl"][:3] == ["3.0", "loaded", ""]
    assert found["tunekit"][1] == "loaded"


def test_everything_else_works(site: Path) -> None:
    text = run(
        site,
        PRELUDE
        + """
p = Pipeline().pretrain().sft().align(method="dpo").lora(r=8).quantize("int4").evaluate(["mmlu", "gsm8k"])
q = Pipeline(model="x").align(method="acme-rl/twice").align(method="other_rl/twice", adapter=None)
levels = [f.level for f in p.check()]
print(json.dumps([p.explain(), levels, q.explain()]))
""",
    )
    assert "tunekit-trl/dpo 0.1.0" in text[0] and set(text[1]) == {"note"}
    assert "acme-rl/twice 2.0" in text[2] and "other-rl/twice 3.0" in text[2]


def test_the_errors_on_use_name_them(site: Path) -> None:
    twice, unknown, finding = run(
        site,
        PRELUDE
        + """
out = []
for name in ("twice", "future"):
    try:
        session.registry.find("trainer", name, "align")
    except (AmbiguousNameError, UnknownNameError) as error:
        out.append([type(error).__name__, str(error)])
out.append([str(f) for f in Pipeline(model="x").align(method="twice").check() if f.code == "ambiguous-name"])
print(json.dumps(out))
""",
    )
    assert twice[0] == "AmbiguousNameError"
    assert 'align(method="acme-rl/twice") or align(method="other-rl/twice")' in twice[1]
    assert "acme-rl/twice (2.0), other-rl/twice (3.0)" in twice[1]
    assert unknown[0] == "UnknownNameError"
    assert "acme-future 9.0 is incompatible" in unknown[1]
    assert "acme-crash 1.0 is broken: RuntimeError: the licence server is down" in unknown[1]
    assert len(finding) == 1 and "acme-rl/twice" in finding[0] and "other-rl/twice" in finding[0]


def test_plugins_can_be_turned_off(site: Path) -> None:
    found = run(
        site,
        PRELUDE
        + """
states = {r.provider: [r.state, r.reason] for r in session.plugins()}
found = session.registry.find("trainer", "twice", "align").component.id
print(json.dumps([states, found, "acme_crash_plugin" in sys.modules]))
""",
        TUNEKIT_DISABLE_PLUGINS="Acme_Crash, other-rl",
    )
    assert found[0]["acme-crash"] == ["disabled", "listed in TUNEKIT_DISABLE_PLUGINS"]
    assert found[1] == "acme-rl/twice" and found[2] is False


def test_only_listed_plugins_are_loaded(site: Path) -> None:
    """The list goes by distribution: a plugin that gives its entry point the name of another is not let in."""
    install(site, "sly-rl", "1.0", GOOD.format(name="sly", module="x"), point="acme-rl")
    states, modules, unknown = run(
        site,
        PRELUDE
        + """
states = {r.provider: [r.state, r.reason] for r in session.plugins()}
try:
    session.registry.find("trainer", "sly", "align")
except UnknownNameError as error:
    unknown = str(error)
print(json.dumps([states, sorted(m for m in sys.modules if m.endswith("_plugin")), unknown]))
""",
        TUNEKIT_ALLOW_PLUGINS="Acme_RL",
    )
    assert states.pop("tunekit") == ["loaded", ""] and states.pop("acme-rl") == ["loaded", ""]
    assert len(states) >= 11 and set(map(tuple, states.values())) == {
        ("disabled", "not listed in TUNEKIT_ALLOW_PLUGINS")
    }
    assert modules == ["acme_rl_plugin", "tunekit._core_plugin"]
    assert "plugin sly-rl 1.0 is disabled: not listed in TUNEKIT_ALLOW_PLUGINS" in unknown


def test_a_failed_import_leaves_nothing_behind(site: Path) -> None:
    """A package imports a part of its own and one of others, then fails: its own part must not stay without it."""
    package = site / "acme_half"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import acme_shared, acme_half.part\nif not acme_shared.READY: raise RuntimeError('not ready')\n"
    )
    (package / "part.py").write_text("STATE = []\n")
    (package / "plugin.py").write_text(GOOD.format(name="half", module="x"))
    (site / "acme_shared.py").write_text("READY = False\n")
    install(site, "acme-half", "1.0", "")
    (site / "acme_half-1.0.dist-info" / "entry_points.txt").write_text("[tunekit]\nacme-half = acme_half.plugin\n")
    first, second = run(
        site,
        PRELUDE
        + """
from tunekit import Session
def look(session):
    (record,) = [r for r in session.plugins() if r.provider == "acme-half"]
    return [record.state, record.reason, sorted(m for m in sys.modules if m.startswith(("acme_half", "acme_shared")))]
first = look(session)
sys.modules["acme_shared"].READY = True
second = look(Session())
import acme_half
assert acme_half.part is sys.modules["acme_half.part"]
print(json.dumps([first, second]))
""",
    )
    assert first == ["broken", "RuntimeError: not ready", ["acme_shared"]]
    assert second == ["loaded", "", ["acme_half", "acme_half.part", "acme_half.plugin", "acme_shared"]]


def test_a_damaged_metadata_folder(site: Path) -> None:
    (site / "acme_rl-2.0.dist-info" / "METADATA").write_bytes(b"\xff\x00")
    states = run(site, PRELUDE + "print(json.dumps(sorted(r.state for r in session.plugins())))")
    assert states.count("loaded") >= 7


def test_listing_plugins_imports_nothing_heavy(site: Path) -> None:
    heavy = run(
        site,
        PRELUDE
        + """
session.plugins(), session.components()
print(json.dumps(sorted(m for m in sys.modules if m in ("torch", "transformers", "datasets", "trl", "peft", "numpy"))))
""",
    )
    assert heavy == []


def test_handing_in_an_installed_plugin_module(site: Path) -> None:
    found = run(
        site,
        PRELUDE
        + """
import acme_rl_plugin
from tunekit import Session
alone = Session(plugins=[acme_rl_plugin], autoload=False)
both = Session(plugins=[acme_rl_plugin])
print(json.dumps([alone.registry.find("trainer", "twice", "align").component.id,
                  [r.state for r in both.plugins() if r.provider == "acme-rl"]]))
""",
    )
    assert found == ["acme-rl/twice", ["loaded"]]


@pytest.mark.parametrize("text", [b"[tunekit]\nno-value\n", b"[tunekit]\nx = \xff\xfe:y\n"], ids=["syntax", "bytes"])
def test_a_damaged_list_of_entry_points_harms_its_own_distribution_only(site: Path, text: bytes) -> None:
    (site / "acme_crash-1.0.dist-info" / "entry_points.txt").write_bytes(text)
    states, found = run(
        site,
        PRELUDE
        + """
states = {r.provider: [r.state, r.reason] for r in session.plugins()}
print(json.dumps([states, session.registry.find("trainer", "acme-rl/twice", "align").component.id]))
""",
    )
    assert states["acme-crash"][0] == "broken" and "its entry_points.txt is damaged" in states["acme-crash"][1]
    assert states["acme-rl"] == states["other-rl"] == ["loaded", ""] and found == "acme-rl/twice"
    assert states["acme-future"][0] == "incompatible"
