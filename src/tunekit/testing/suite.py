"""The base of all suites: which component is tested, in which session."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tunekit._lazy import load_target
from tunekit.testing.gaps import Gap
from tunekit.testing.sessions import isolated_session
from tunekit.testing.state import watch_global_state

if TYPE_CHECKING:
    from tunekit._registry import Entry
    from tunekit.session import Session

__all__ = ["Suite"]


class Suite:
    """Base of the suites. A subclass whose name starts with ``Test`` is collected by pytest."""

    name: ClassVar[str] = ""
    """``dist/name`` of the component, or its short name."""
    kind: ClassVar[str] = ""
    """Kind of component; each suite sets it."""
    stage: ClassVar[str] = ""
    """Stage of a trainer; needed only when one name serves several stages."""
    plugins: ClassVar[tuple[Any, ...]] = ()
    """Further plugins: modules, objects, decorated classes, or import strings ``pkg.module`` or ``pkg.module:name``."""
    gaps: ClassVar[Mapping[str, Gap]] = {}
    """Test name to the way in which it fails today."""

    @pytest.fixture(autouse=True)
    def global_state_is_kept(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """Fails the test if it left global state changed."""
        if self.gaps and not request.config.pluginmanager.has_plugin("tunekit.testing.pytest"):
            pytest.fail(
                'gaps need the pytest plugin: put pytest_plugins = "tunekit.testing.pytest" into conftest.py',
                pytrace=False,
            )
        with watch_global_state():
            yield

    @pytest.fixture
    def session(self) -> Session:
        """A session with the installed plugins and those of ``plugins``. The environment plays no part."""
        return suite_session(self.plugins)

    @pytest.fixture
    def entry(self, session: Session) -> Entry:
        """The component that is tested."""
        return find_entry(session, type(self).__name__, self.kind, self.name, self.stage)


def suite_session(plugins: Iterable[Any], *further: Any) -> Session:
    """A session with the installed plugins, those that a suite names, and ``further`` ones."""
    return isolated_session(*(_plugin(plugin) for plugin in plugins), *further)


def _plugin(plugin: Any) -> Any:
    if not isinstance(plugin, str):
        return plugin
    return load_target(plugin) if ":" in plugin else importlib.import_module(plugin)


def find_entry(session: Session, owner: str, kind: str, name: str, stage: str = "") -> Entry:
    """The entry that a suite names. What is wrong ends the test with a message that lists what there is."""
    stages = sorted({entry.component.stage for entry in session.components(kind)})
    if not name:
        known = sorted({entry.component.id for entry in session.components(kind)})
        pytest.fail(
            f'{owner} does not say which {kind} it tests: set name = "dist/name". Known: {", ".join(known) or "none"}',
            pytrace=False,
        )
    if stage or kind != "trainer":
        return session.registry.find(kind, name, stage)
    found = [entry for each in stages if (entry := session.registry.get(kind, name, each)) is not None]
    if len(found) > 1:
        served = ", ".join(entry.component.stage for entry in found)
        pytest.fail(f"{name} serves several stages ({served}): set stage in {owner}", pytrace=False)
    if found:
        return found[0]
    known = sorted(f"{entry.component.id} ({entry.component.stage})" for entry in session.components(kind))
    broken = [f"plugin {r.label} is {r.state}: {r.reason}" for r in session.plugins() if r.state != "loaded"]
    pytest.fail(
        f"{owner}: there is no trainer {name!r}. Known: {', '.join(known) or 'none'}"
        + "".join(f"\n{b}" for b in broken),
        pytrace=False,
    )
