"""Where the code of a run came from, in the manifest; with real plugin folders, some of them edited between runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_plugin

import tunekit.plugins
from tunekit._provenance import Provenance, package_digest
from tunekit.events import Event, Notice
from tunekit.pipeline import Pipeline
from tunekit.plan import ComponentRef
from tunekit.plugins import AdapterSpec, BenchmarkSpec, StepSpec, hookimpl
from tunekit.session import Session

TEXT = [{"text": "one two three"}, {"text": "four"}]

PLUGIN = """
from tunekit.plugins import BenchmarkSpec, StepSpec, hookimpl

api_version = 1

@hookimpl
def tunekit_steps():
    return [StepSpec(name="stamp", makes="report", target="acme_stamp.deep.step:Stamp",
                     options="acme_stamp.options:StampOptions")]
"""

STEP = """
from tunekit.plugins import Artifact

class Stamp:
    def run(self, ctx):
        return Artifact(kind="report", details={"text": ctx.options.text + MARK})

MARK = "!"
"""

OPTIONS = """
from tunekit.plugins import Options

class StampOptions(Options):
    text: str = "ok"
"""

DRIVER = """
import json, sys
import toy_plugin
from tunekit import Pipeline, Session

workdir, base, text = sys.argv[1:]
session = Session(plugins=[toy_plugin, *PLUGINS])
early = []
def watch(event):
    if type(event).__name__ == "StepStarted" and not early:
        early.append(json.loads((open(workdir + "/manifest.json")).read()))
        early.append("acme_stamp.deep.step" in sys.modules)
result = Pipeline(model=base, session=session).sft(data=[{"text": "a"}]).step("stamp", text=text).run(
    workdir=workdir, on_event=watch)
print(json.dumps({
    "details": result.step("stamp").artifact.details,
    "reused": [step.reused for step in result.steps],
    "notices": list(result.notices),
    "early": early[0]["components"],
    "imported_early": early[1],
}))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed plugin distribution, as pip leaves it."""
    site = tmp_path / "site"
    files = {
        "acme_stamp/__init__.py": "",
        "acme_stamp/plugin.py": PLUGIN,
        "acme_stamp/options.py": OPTIONS,
        "acme_stamp/deep/__init__.py": "",
        "acme_stamp/deep/step.py": STEP,
        "acme_stamp-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme-stamp\nVersion: 1.2\n",
        "acme_stamp-1.2.dist-info/entry_points.txt": "[tunekit]\nacme = acme_stamp.plugin\n",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(textwrap.dedent(text))
    toy_plugin.write_model(tmp_path / "base", 3.0)
    return site


def run(site: Path, workdir: Path, *, text: str = "hi", plugins: str = "", driver: str = DRIVER) -> Any:
    support = Path(toy_plugin.__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{support}", "TUNEKIT_DISABLE_PLUGINS": "tunekit-trl"}
    done = subprocess.run(
        [sys.executable, "-c", driver.replace("*PLUGINS", plugins), str(workdir), str(site.parent / "base"), text],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def component(manifest: Any, id: str) -> dict[str, Any]:
    (found,) = [item for item in manifest["components"] if item["id"] == id]
    return dict(found)


def manifest_of(workdir: Path) -> Any:
    return json.loads((workdir / "manifest.json").read_text())


def notices(answer: Any) -> list[str]:
    return [notice for notice in answer["notices"] if "has changed" in notice]


def test_the_manifest_says_where_the_code_is(site: Path, tmp_path: Path) -> None:
    answer = run(site, tmp_path / "w")
    found = component(manifest_of(tmp_path / "w"), "acme-stamp/stamp")
    sums = subprocess.run(
        "find acme_stamp -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum",
        shell=True, cwd=site, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found == {
        "id": "acme-stamp/stamp",
        "kind": "step",
        "stage": "",
        "target": "acme_stamp.deep.step:Stamp",
        "distribution": "acme-stamp",
        "version": "1.2",
        "module": "acme_stamp.deep.step",
        "file": "acme_stamp/deep/step.py",
        "sha256": hashlib.sha256((site / "acme_stamp/deep/step.py").read_bytes()).hexdigest(),
        "package_sha256": sums.stdout.split()[0],
        "editable": False,
        "reason": "",
    }
    assert answer["early"] == manifest_of(tmp_path / "w")["components"]
    assert not answer["imported_early"], "the files are found without an import"
    result = json.loads((tmp_path / "w" / "02-stamp" / "result.json").read_text())
    assert result["code"] == [
        {"id": "acme-stamp/stamp", "kind": "step", "version": "1.2", "package_sha256": found["package_sha256"]}
    ]
    assert str(tmp_path) not in json.dumps(manifest_of(tmp_path / "w")["components"]), "no absolute path"


def test_edited_code_of_a_reused_step_is_noticed(site: Path, tmp_path: Path) -> None:
    first = run(site, tmp_path / "w")
    assert first["details"] == {"text": "hi!"} and notices(first) == []
    again = run(site, tmp_path / "w")
    assert again["reused"] == [True, True] and notices(again) == []

    step = site / "acme_stamp" / "deep" / "step.py"
    step.write_text(step.read_text().replace('MARK = "!"', 'MARK = "?"'))
    edited = run(site, tmp_path / "w")
    assert edited["reused"] == [True, True] and edited["details"] == {"text": "hi!"}
    (notice,) = notices(edited)
    assert notice.startswith("stamp: the code of acme-stamp/stamp 1.2 has changed")
    assert "raise the version of acme-stamp or use another workdir" in notice
    logged = [json.loads(line) for line in (tmp_path / "w" / "events.jsonl").read_text().splitlines()]
    assert [event["code"] for event in logged if event["step"] == "stamp" and event.get("code")] == ["code-changed"]

    elsewhere = run(site, tmp_path / "other")
    assert elsewhere["details"] == {"text": "hi?"} and notices(elsewhere) == []

    info = site / "acme_stamp-1.2.dist-info"
    (info / "METADATA").write_text((info / "METADATA").read_text().replace("1.2", "1.3"))
    info.rename(site / "acme_stamp-1.3.dist-info")
    raised = run(site, tmp_path / "w")
    assert raised["reused"] == [True, False] and raised["details"] == {"text": "hi?"} and notices(raised) == []


def test_an_edited_data_format_is_noticed(site: Path, tmp_path: Path) -> None:
    """The key of a step holds the file and the version of a format, not the rows that it makes of them."""
    plugin = site / "acme_stamp" / "plugin.py"
    form = """

def tunekit_formats():
    return [DataFormatSpec(name="loud", schema="text", columns=("loud",), target="acme_stamp.loud:quiet")]

tunekit_formats = hookimpl(tunekit_formats)
"""
    plugin.write_text(plugin.read_text().replace("BenchmarkSpec,", "DataFormatSpec,") + form)
    loud = site / "acme_stamp" / "loud.py"
    loud.write_text("def quiet(row):\n    return {'text': row['loud'].lower()}\n")
    (tmp_path / "rows.jsonl").write_text('{"loud": "ONE"}\n')
    driver = DRIVER.replace('data=[{"text": "a"}]', f"data={str(tmp_path / 'rows.jsonl')!r}")
    first = run(site, tmp_path / "w", driver=driver)
    again = run(site, tmp_path / "w", driver=driver)
    assert first["reused"] == [False, False] and again["reused"] == [True, True] and notices(again) == []
    loud.write_text("def quiet(row):\n    return {'text': row['loud'].lower() * 2}\n")
    edited = run(site, tmp_path / "w", driver=driver)
    said = notices(edited)
    assert edited["reused"] == [True, True] and any("sft: the code of acme-stamp/loud 1.2" in line for line in said)


def test_a_step_that_runs_again_records_the_new_code(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path / "w")
    (site / "acme_stamp" / "options.py").write_text(OPTIONS + "\n# longer\n")
    answer = run(site, tmp_path / "w", text="ho")
    assert answer["reused"] == [True, False] and notices(answer) == []
    result = json.loads((tmp_path / "w" / "02-stamp" / "result.json").read_text())
    assert result["code"][0]["package_sha256"] == package_digest(site / "acme_stamp", site)
    assert notices(run(site, tmp_path / "w", text="ho")) == []


def test_results_of_an_older_tunekit_have_no_code(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path / "w")
    record = tmp_path / "w" / "02-stamp" / "result.json"
    data = json.loads(record.read_text())
    del data["code"]
    record.write_text(json.dumps(data))
    (site / "acme_stamp" / "options.py").write_text(OPTIONS + "\n# longer\n")
    answer = run(site, tmp_path / "w")
    assert answer["reused"] == [True, True] and notices(answer) == []


def test_an_editable_installation_is_marked(site: Path, tmp_path: Path) -> None:
    info = site / "acme_stamp-1.2.dist-info" / "direct_url.json"
    info.write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": True}}))
    run(site, tmp_path / "w")
    manifest = manifest_of(tmp_path / "w")
    assert component(manifest, "acme-stamp/stamp")["editable"] is True
    assert component(manifest, "inline/sft")["editable"] is False


def test_every_kind_of_component_is_there(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"loud": "ONE"}\n')
    toy_plugin.write_model(tmp_path / "base", 3.0)

    @tunekit.plugins.data_format(name="loud", schema="text", columns=("loud",))
    def loud(row: Any) -> Any:
        return {"text": row["loud"].lower()}

    @tunekit.plugins.model(name="toy-base")
    def toy_base() -> Any:
        return toy_plugin.ToySource(str(tmp_path / "base"))

    class Sets:
        @hookimpl
        def tunekit_benchmarks(self) -> list[BenchmarkSpec]:
            return [BenchmarkSpec(name="more", target="toy_plugin:ToyBench", sample=True)]

        @hookimpl
        def tunekit_adapters(self) -> list[AdapterSpec]:
            return [AdapterSpec(name="small", target="toy_plugin:ToyAdapter")]

    session = Session(plugins=[toy_plugin, Sets(), loud, toy_base], autoload=False)
    chain = Pipeline(model="toy-base", session=session).sft(data=str(rows), name="first").sft(limit=3, adapter="small")
    chain.evaluate(["toybench", "more"]).track("toy").run(workdir=tmp_path / "w")
    manifest = manifest_of(tmp_path / "w")
    assert [(item["kind"], item["id"], item["stage"]) for item in manifest["components"]] == [
        ("model", "inline/toy-base", ""),
        ("trainer", "inline/sft", "sft"),
        ("format", "inline/loud", ""),
        ("adapter", "inline/small", ""),
        ("dataset", "tunekit/stdlib-text", ""),
        ("step", "inline/evaluate", ""),
        ("benchmark", "inline/toybench", ""),
        ("benchmark", "inline/more", ""),
        ("tracker", "inline/toy", ""),
    ]
    toy = Path(toy_plugin.__file__)
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (toy, Path(__file__))]
    for item in manifest["components"]:
        if item["distribution"] == "inline":
            assert item["sha256"] == hashes[item["kind"] in ("model", "format")]
    assert component(manifest, "inline/sft")["file"] == "toy_plugin.py"
    assert component(manifest, "inline/sft")["package_sha256"] == package_digest(toy, toy.parent)
    core = component(manifest, "tunekit/stdlib-text")
    assert core["distribution"] == "tunekit" and core["file"] == "tunekit/_embedded/stdlib.py"
    assert core["version"] == importlib.metadata.version("tunekit")
    result = json.loads((tmp_path / "w" / "02-sft" / "result.json").read_text())
    assert [item["id"] for item in result["code"]] == ["inline/sft", "inline/small"]
    result = json.loads((tmp_path / "w" / "03-evaluate" / "result.json").read_text())
    assert [item["id"] for item in result["code"]] == ["inline/evaluate", "inline/toybench", "inline/more"]


def provenance(*components: ComponentRef) -> Any:
    """Provenance of components that no plan names."""
    session = Session(plugins=[toy_plugin], autoload=False)
    resolved: Any = types.SimpleNamespace(model_component=None, trackers=tuple((item, {}) for item in components))
    return Provenance(resolved, [], session)


def ref(target: str, provider: str = "inline", name: str = "x") -> ComponentRef:
    return ComponentRef(kind="step", name=name, provider=provider, version="1", target=target)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("builtins:object", "the module builtins lies in no file"),
        ("no_such_package.module:X", "there is no module no_such_package"),
        ("json.no_such:X", "there is no module json.no_such"),
        ("made_in_memory:X", "the module made_in_memory lies in no file"),
    ],
)
def test_what_cannot_be_read_is_null_with_a_reason(target: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_in_memory", types.ModuleType("made_in_memory"))
    (facts,) = provenance(ref(target, provider="gone-dist")).to_data()
    assert (facts["file"], facts["sha256"], facts["package_sha256"]) == (None, None, None)
    assert facts["reason"] == says and facts["editable"] is False


def test_a_module_that_appears_later_is_found_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = provenance(ref("late_module:X"))
    assert one.to_data()[0]["sha256"] is None
    (tmp_path / "late_module.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert one.to_data()[0]["sha256"] == hashlib.sha256(b"X = 1\n").hexdigest()


def test_namespace_packages_count_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name in (("one", "a"), ("two", "b")):
        package = tmp_path / folder / "acme_shared" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "mod.py").write_text(f"X = {name!r}\n")
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    (tmp_path / "two" / "acme_shared" / "loose.py").write_text("X = 0\n")
    facts = provenance(ref("acme_shared.b.mod:X"), ref("acme_shared.loose:X", name="y")).to_data()
    root = tmp_path / "two"
    assert [item["file"] for item in facts] == ["acme_shared/b/mod.py", "acme_shared/loose.py"]
    assert facts[0]["package_sha256"] == package_digest(root / "acme_shared" / "b", root)
    assert facts[1]["package_sha256"] == package_digest(root / "acme_shared" / "loose.py", root)
    assert "acme_shared" not in sys.modules


def test_a_file_that_cannot_be_read_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "acme_odd"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mod.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    one = provenance(ref("acme_odd.mod:X"))
    before = one.to_data()[0]
    assert before["reason"] == "" and before["package_sha256"]
    (package / "mod.py").unlink()
    (package / "mod.py").mkdir()
    (facts,) = provenance(ref("acme_odd:X")).to_data()
    assert facts["package_sha256"] == package_digest(package, tmp_path) != before["package_sha256"]
    archive = tmp_path / "acme_zip.zip"
    import zipfile

    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("acme_zipped.py", "X = 1\n")
    monkeypatch.syspath_prepend(str(archive))
    (facts,) = provenance(ref("acme_zipped:X")).to_data()
    assert facts["sha256"] is None and facts["file"] == "acme_zipped.py"
    assert facts["reason"] and str(tmp_path) not in facts["reason"]


def test_only_what_is_known_on_both_sides_can_have_changed(tmp_path: Path) -> None:
    session = Session(plugins=[toy_plugin], autoload=False)
    chain = Pipeline(session=session).pretrain(data=TEXT)
    chain.run(workdir=tmp_path / "w")
    record = tmp_path / "w" / "01-pretrain" / "result.json"
    data = json.loads(record.read_text())
    for code, expected in (
        ([{**data["code"][0], "package_sha256": "0" * 64}], 1),
        ([{**data["code"][0], "package_sha256": None}], 0),
        ([{"id": "other/x", "kind": "trainer", "package_sha256": "0" * 64}], 0),
        (["nonsense"], 0),
        ("nonsense", 0),
        (None, 0),
    ):
        record.write_text(json.dumps({**data, "code": code}))
        seen: list[Event] = []
        result = chain.run(workdir=tmp_path / "w", on_event=seen.append)
        changed = [event for event in seen if isinstance(event, Notice) and event.code == "code-changed"]
        assert result.steps[0].reused and len(changed) == expected, code
        if changed:
            assert f"delete {tmp_path / 'w' / '01-pretrain'} or use another workdir" in changed[0].message


SCRIPT = """
import sys
import toy_plugin
import tunekit.plugins
from tunekit import Pipeline, Session

@tunekit.plugins.step(name="stamp", makes="report", verb="stamp")
class Stamp:
    def run(self, ctx):
        return tunekit.plugins.Artifact(kind="report", details={"text": "one"})

session = Session(plugins=[toy_plugin, Stamp], autoload=False)
result = Pipeline(model=sys.argv[2], session=session).stamp().run(workdir=sys.argv[1])
print(result.steps[0].reused, result.steps[0].artifact.details["text"], len(result.notices))
"""


def test_edits_around_a_decorated_component_are_no_change_of_it(tmp_path: Path) -> None:
    """Its version is the hash of its code, so that a changed one is run again, and another one is not."""
    toy_plugin.write_model(tmp_path / "base", 3.0)
    script = tmp_path / "script.py"

    def answer(source: str) -> str:
        script.write_text(source)
        done = subprocess.run(
            [sys.executable, script, tmp_path / "w", tmp_path / "base"],
            env={**os.environ, "PYTHONPATH": str(Path(toy_plugin.__file__).parent)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert answer(SCRIPT) == "False one 0"
    found = component(manifest_of(tmp_path / "w"), "inline/stamp")
    assert found["version"].startswith("code-") and found["file"] == "script.py"
    assert found["sha256"] == hashlib.sha256(SCRIPT.encode()).hexdigest()
    assert answer(SCRIPT + "\nother = 1\n") == "True one 0"
    assert answer(SCRIPT.replace('"one"', '"two"')) == "False two 0"


def test_a_component_without_a_file_is_known_by_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: the source is in Python's line cache, and in no file."""
    import linecache

    source = "class Typed:\n    def run(self, ctx):\n        return None\n"
    linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(keepends=True), "<cell 1>")
    module = types.ModuleType("typed_module")
    exec(compile(source, "<cell 1>", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "typed_module", module)

    class Plugin:
        @hookimpl
        def tunekit_steps(self) -> list[StepSpec]:
            return [StepSpec(name="typed", target="typed_module:Typed.run")]

    session = Session(plugins=[Plugin()], autoload=False)
    component = session.registry.find("step", "typed").component
    resolved: Any = types.SimpleNamespace(model_component=component, trackers=())
    (facts,) = Provenance(resolved, [], session).to_data()
    assert facts["distribution"] == "inline" and facts["reason"] == "the module typed_module lies in no file"
    assert facts["sha256"] == hashlib.sha256(source.split("\n", 1)[1].encode()).hexdigest()
    away = replace(component, provider="acme")
    assert Provenance(
        types.SimpleNamespace(model_component=away, trackers=()),  # type: ignore[arg-type]
        [],
        session,
    ).to_data()[0]["sha256"] is None  # fmt: skip
