"""Deprecations: one module, warnings at the caller's line, and a removal that cannot be forgotten."""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pluggy
import pytest
from packaging.version import Version

from tunekit._deprecated import DEPRECATIONS, Deprecation, deprecated, hook_options, impl_warnings, overdue, warn
from tunekit.errors import TunekitDeprecationWarning, TunekitError
from tunekit.events import Event
from tunekit.plugins import TrainerSpec, hookimpl, hookspecs
from tunekit.session import Session
from tunekit.settings import Settings

TUNE = Deprecation(name="Pipeline.tune()", instead="Pipeline.sft()", since="0.0.1", removed_in="99.0")
TEXT = "Pipeline.tune() is deprecated since tunekit 0.0.1 and will be removed in 99.0; use Pipeline.sft()"
HOOK = Deprecation(name="the hook tunekit_event", instead="trackers", since="0.0.1", removed_in="99.0")
ARGUMENT = Deprecation(name="the argument plan", instead="work", since="0.0.1", removed_in="99.0")


def line() -> int:
    """Number of the line that calls this."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_what_is_deprecated_now() -> None:
    assert overdue(DEPRECATIONS) == (), "its release has come: delete it"
    assert len({item.name for item in DEPRECATIONS}) == len(DEPRECATIONS)
    assert all(Version(item.since) < Version(item.removed_in) for item in DEPRECATIONS)


def test_the_warning_says_what_to_write_and_points_at_the_caller() -> None:
    def sft(*, rows: Any = None) -> None:
        if rows is not None:
            warn(TUNE)

    with pytest.warns(TunekitDeprecationWarning) as caught:
        here = line()
        sft(rows=[])
    (one,) = caught
    assert str(one.message) == TEXT
    assert (one.filename, one.lineno) == (__file__, here + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sft()


def test_a_stacklevel_counts_as_in_python() -> None:
    def outer() -> None:
        inner()

    def inner() -> None:
        warn(TUNE, stacklevel=3)

    with pytest.warns(TunekitDeprecationWarning) as caught:
        here = line()
        outer()
    assert caught[0].lineno == here + 1


class Old:
    @deprecated(TUNE)
    def tune(self, rate: float = 0.5) -> float:
        """Train.

        Args:
            rate: how fast.
        """
        return rate * 2

    @deprecated(TUNE)
    def bare(self) -> None:
        pass


def test_a_deprecated_function_works_and_says_so() -> None:
    with pytest.warns(TunekitDeprecationWarning) as caught:
        here = line()
        assert Old().tune(rate=2.0) == 4.0
    assert [(one.filename, one.lineno, str(one.message)) for one in caught] == [(__file__, here + 1, TEXT)]
    assert list(inspect.signature(Old.tune).parameters) == ["self", "rate"] and Old.tune.__name__ == "tune"
    note = "Deprecated since 0.0.1, removed in 99.0: use Pipeline.sft()."
    assert Old.tune.__doc__ == f"Train.\n\nArgs:\n    rate: how fast.\n\n{note}"
    assert Old.bare.__doc__ == note


@pytest.mark.parametrize(
    ("now", "removed_in", "due"),
    [
        ("0.5.9", "0.6", False),
        ("0.6", "0.6.0", True),
        ("0.6.0", "0.6", True),
        ("0.6.0rc1", "0.6", True),
        ("0.6.0.dev3+local", "0.6", True),
        ("0.10", "0.9", True),
        ("0.9", "0.10", False),
        ("1.0.post1", "1.0", True),
    ],
)
def test_a_removal_that_is_due_raises(now: str, removed_in: str, due: bool) -> None:
    item = Deprecation(name="f()", instead="g()", since="0.1", removed_in=removed_in)
    assert overdue([TUNE, item], now) == ((item,) if due else ())
    makers = [
        lambda: deprecated(item, version=now)(lambda: None),
        lambda: hook_options(item, version=now),
        lambda: hook_options(version=now, plan=item),
    ]
    for make in makers:
        if due:
            with pytest.raises(TunekitError, match=r"f\(\) was to be removed in tunekit") as caught:
                make()
            assert caught.value.code == "deprecation-due" and now in caught.value.found
        else:
            make()


def test_the_installed_version_counts_where_none_is_given() -> None:
    item = Deprecation(name="f()", instead="g()", since="0.0.1", removed_in=version("tunekit"))
    assert overdue([item, TUNE]) == (item,)
    with pytest.raises(TunekitError, match="still here"):
        deprecated(item)
    with pytest.raises(TunekitError, match="still here"):
        hook_options(item)


def test_hook_options_are_what_pluggy_takes() -> None:
    """pluggy itself warns of such hooks, on every release in our range."""
    hookspec, impl = pluggy.HookspecMarker("p"), pluggy.HookimplMarker("p")

    class Specs:
        @hookspec(**hook_options(HOOK))
        def gone(self) -> None: ...

        @hookspec(**hook_options(plan=ARGUMENT))
        def narrower(self, plan: Any, work: Any) -> None: ...

    class Old:
        @impl
        def gone(self) -> None: ...

        @impl
        def narrower(self, plan: Any) -> None: ...

    class New:
        @impl
        def narrower(self, work: Any) -> None: ...

    manager = pluggy.PluginManager("p")
    manager.add_hookspecs(Specs)
    with pytest.warns(TunekitDeprecationWarning) as caught:
        manager.register(Old())
    assert sorted(str(one.message) for one in caught) == [str(ARGUMENT), str(HOOK)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.register(New())
    assert impl_warnings({}, ["plan"]) == [] == impl_warnings(hook_options(plan=ARGUMENT), ["work"])


@pytest.fixture
def old_hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """tunekit_event and tunekit_trainers will go, and so will the argument of tunekit_check_plan."""
    for name, options in (
        ("tunekit_event", hook_options(HOOK)),
        ("tunekit_trainers", hook_options(TUNE)),
        ("tunekit_check_plan", hook_options(plan=ARGUMENT)),
    ):
        function = getattr(hookspecs, name)
        monkeypatch.setattr(function, "tunekit_spec", {**function.tunekit_spec, **options})
    yield


def module() -> types.ModuleType:
    made = types.ModuleType("acme")

    @hookimpl
    def tunekit_trainers() -> list[TrainerSpec]:
        return []

    @hookimpl
    def tunekit_check_plan() -> list[Any]:
        return []

    made.tunekit_trainers, made.tunekit_check_plan = tunekit_trainers, tunekit_check_plan  # type: ignore[attr-defined]
    return made


class Observer:
    @hookimpl
    def tunekit_event(self, event: Event) -> None:
        """Nothing."""

    @hookimpl
    def tunekit_check_plan(self, plan: Any) -> list[Any]:
        return []


@pytest.mark.usefixtures("old_hooks")
def test_a_plugin_is_told_at_its_own_line_and_still_works() -> None:
    one = Session(plugins=[Observer(), module()], autoload=False, settings=Settings())
    with pytest.warns(TunekitDeprecationWarning) as caught:
        records = {record.name: record for record in one.plugins()}
    assert {(str(item.message), item.filename) for item in caught} == {
        (str(HOOK), __file__),
        (str(ARGUMENT), __file__),
        (TEXT, __file__),
    }
    assert len(caught) == 3, "once each, and not by pluggy as well"
    first = inspect.getsourcelines(Observer.tunekit_event)[1]
    assert [item.lineno for item in caught if str(item.message) == str(HOOK)] == [first]
    assert records["Observer"].state == records["acme"].state == "loaded"
    assert set(records["Observer"].problems) == {str(HOOK), str(ARGUMENT)}
    assert records["acme"].problems == (TEXT,), "the argument that will go is not one that it takes"


@pytest.mark.usefixtures("old_hooks")
def test_where_warnings_are_errors_the_plugin_is_left_out() -> None:
    """As in the test suite of a plugin's author."""
    one = Session(plugins=[Observer()], autoload=False, settings=Settings())
    (record,) = [record for record in one.plugins() if record.name == "Observer"]
    assert record.state == "broken" and record.reason == f"TunekitDeprecationWarning: {ARGUMENT}"
