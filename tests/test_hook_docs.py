"""The reference of the plugin API says what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import public_api
import pytest

import tunekit.plugins
import tunekit.plugins.hf
import tunekit.testing
from tunekit import events
from tunekit._deprecated import DEPRECATIONS
from tunekit._manager import REGISTRATION
from tunekit.plugins import hookspecs, specs

ROOT = Path(__file__).resolve().parents[1]
HOOK_PAGES = ROOT / "docs" / "reference" / "hooks"
PLUGIN_API = ROOT / "docs" / "reference" / "plugin-api.md"
STABILITY = ROOT / "docs" / "explanation" / "stability.md"
HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if name.startswith("tunekit_") and inspect.isfunction(function)
}


def signature_of(name: str, function: Any) -> str:
    """The hook as its page shows it."""
    options = {key: value for key, value in function.tunekit_spec.items() if value and key != "warn_on_impl"}
    mark = ", ".join(f"{key}={value}" for key, value in options.items())
    parameters = ", ".join(f"{p.name}: {p.annotation}" for p in inspect.signature(function).parameters.values())
    returns = inspect.signature(function).return_annotation
    return f"@hookspec{f'({mark})' if mark else ''}\ndef {name}({parameters}) -> {returns}: ...\n"


def rows_of(page: str) -> dict[str, str]:
    """The table of facts on top of a page."""
    return dict(re.findall(r"^\| (called|by|return|answers|errors) \| (.+) \|$", page, re.M))


def test_there_are_seventeen_hooks_with_a_page_each() -> None:
    assert len(HOOKS) == 17
    assert {path.stem for path in HOOK_PAGES.glob("tunekit_*.md")} == set(HOOKS)
    index = (HOOK_PAGES / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((tunekit_\w+)\.md\)", index)) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_the_page_of_a_hook_shows_its_exact_signature(name: str) -> None:
    page = (HOOK_PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    (shown,) = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    assert shown == signature_of(name, HOOKS[name])


@pytest.mark.parametrize("name", HOOKS)
def test_the_page_of_a_hook_says_when_who_and_what(name: str) -> None:
    page = (HOOK_PAGES / f"{name}.md").read_text(encoding="utf-8")
    facts = rows_of(page)
    assert set(facts) == {"called", "by", "return", "answers", "errors"}
    first = bool(HOOKS[name].tunekit_spec.get("firstresult"))
    assert ("the first that is not `None`" in facts["answers"]) == first
    if name in REGISTRATION:
        assert f"`{REGISTRATION[name].__name__}`" in facts["return"]
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert f"def {name}(" in code, "the example implements the hook"
    assert "assert " in code, "the example proves something"


@pytest.mark.parametrize("name", HOOKS)
def test_the_docstring_of_a_hook_says_something(name: str) -> None:
    assert HOOKS[name].__doc__


def sections() -> dict[str, str]:
    """Heading of the second level to its text, of the page on the plugin API."""
    parts = re.split(r"^## (.+)$", PLUGIN_API.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("module", [tunekit.plugins, tunekit.plugins.hf], ids=lambda module: module.__name__)
def test_every_public_name_stands_in_the_reference(module: Any) -> None:
    text = PLUGIN_API.read_text(encoding="utf-8")
    missing = [name for name in module.__all__ if not re.search(rf"`@?{name}\b|^### {name}$", text, re.M)]
    assert not missing


def test_the_reference_names_nothing_that_does_not_exist() -> None:
    """In the first column of its tables and in its headings."""
    text = PLUGIN_API.read_text(encoding="utf-8")
    assert set(re.findall(r"^### (\w+)", text, re.M)) <= set(tunekit.plugins.__all__)
    known = {
        "Helpers for components built on transformers": set(tunekit.plugins.hf.__all__),
        "Events": set(events.__all__),
        "Decorators": set(tunekit.plugins.__all__),
        "Options": {*tunekit.plugins.SupervisedOptions.model_fields, *tunekit.plugins.DataRequest.__dataclass_fields__},
    }
    found = sections()
    for title, names in known.items():
        assert set(re.findall(r"^\| `@?(\w+)`", found[title], re.M)) <= names, title


RECORDS = [
    name
    for name in tunekit.plugins.__all__
    if dataclasses.is_dataclass(getattr(tunekit.plugins, name)) and name != "API_VERSION"
]


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_of_a_record_stands_in_its_table(name: str) -> None:
    record = getattr(tunekit.plugins, name)
    inherited = {f.name for f in dataclasses.fields(specs.Spec)} if issubclass(record, specs.Spec) else set()
    if record is specs.Spec:
        inherited = set()
    fields = {f.name: f for f in dataclasses.fields(record) if f.name not in inherited and not f.name.startswith("_")}
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", PLUGIN_API.read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| (.+?) \| (.+) \|$", section[1], re.M)
    shown = {row[0]: (row[1].replace("\\|", "|"), row[2]) for row in rows}
    assert list(shown) == list(fields)
    assert shown == {field.name: (str(field.type), default_of(field)) for field in fields.values()}


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`".replace("'", '"')


@pytest.mark.parametrize("name", sorted(tunekit.plugins.SupervisedOptions.model_fields))
def test_every_shared_option_stands_in_the_reference(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", sections()["Options"], re.M)


def test_every_event_stands_in_the_reference_with_its_fields() -> None:
    text = sections()["Events"]
    for name in events.__all__:
        thing = getattr(events, name)
        if not dataclasses.is_dataclass(thing) or thing is events.Event:
            continue
        row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.M)
        assert row is not None, name
        own = [
            f.name
            for f in dataclasses.fields(thing)
            if f.name not in {g.name for g in dataclasses.fields(events.Event)}
        ]
        assert re.findall(r"`(\w+)`", row[1]) == own


def test_the_policy_names_what_the_project_states() -> None:
    text = " ".join(STABILITY.read_text(encoding="utf-8").split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pluggy,) = [each for each in project["dependencies"] if each.startswith("pluggy")]
    assert f"pluggy `{pluggy.removeprefix('pluggy')}`" in text
    pythons = sorted(re.findall(r":: (3\.\d+)$", "\n".join(project["classifiers"]), re.M), key=lambda v: int(v[2:]))
    assert f"Python {pythons[0]} to {pythons[-1]}." in text
    assert f"a whole number, {tunekit.plugins.API_VERSION} today" in text
    assert all(f"`{facade}`" in text for facade in public_api.FACADES)


def test_the_policy_lists_what_is_deprecated() -> None:
    """Its last section, from the one module that has the records."""
    listed = STABILITY.read_text(encoding="utf-8").partition("## Deprecated now\n")[2].strip()
    assert listed == ("\n".join(f"- {item}." for item in DEPRECATIONS) or "Nothing.")


def test_every_name_of_the_kit_stands_on_its_page() -> None:
    text = (ROOT / "docs" / "how-to" / "test-your-plugin.md").read_text(encoding="utf-8")
    missing = [name for name in tunekit.testing.__all__ if not re.search(rf"`{name}`", text)]
    assert not missing


PLUGIN_PAGES = sorted((ROOT / "docs" / "how-to" / "plugins").glob("*.md"))


@pytest.mark.parametrize("page", PLUGIN_PAGES, ids=lambda page: page.stem)
def test_a_page_about_a_kind_names_its_suite_and_usual_mistakes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (suite,) = re.findall(r"\*\*Tested by\*\* `(\w+)`", text)
    assert suite in tunekit.testing.__all__
    assert text.count("\n- ", text.index("**Common mistakes**")) >= 3
    assert "reference/plugin-api.md#" in text


def test_every_suite_and_decorator_is_shown_on_some_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PLUGIN_PAGES)
    suites = {name for name in tunekit.testing.__all__ if name.endswith("Suite")} - {"Suite", "PluginSuite"}
    assert {name for name in suites if f"`{name}`" in text} == suites
    table = re.findall(r"^\| `@(\w+)`", sections()["Decorators"], re.M)
    assert {name for name in table if f"@{name}(" in text} == set(table)


def test_gaps_on_the_page_name_tests_that_exist() -> None:
    from tunekit.testing import TrainerSuite

    text = (ROOT / "docs" / "how-to" / "test-your-plugin.md").read_text(encoding="utf-8")
    shown = re.findall(r'"(test_\w+)": Gap', text)
    assert shown and all(hasattr(TrainerSuite, name) for name in shown)
