"""What every plugin distribution must be, as tests."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tunekit.testing.checks import PluginFacts, plugin_facts, run_check
from tunekit.testing.suite import Suite

__all__ = ["PluginSuite"]

_facts: dict[str, PluginFacts] = {}


class PluginSuite(Suite):
    """The distribution as a whole: entry point, hooks, specs, options and targets.

    ``class TestPlugin(PluginSuite): name = "acme-rl"`` in the tests of an installed distribution. Everything is looked
    at in fresh interpreters, with the installed metadata.
    """

    kind: ClassVar[str] = "plugin"

    @pytest.fixture
    def facts(self) -> PluginFacts:
        """What is installed under ``name``."""
        if not self.name:
            pytest.fail(
                f'{type(self).__name__} does not say what it tests: set name = "your-distribution"', pytrace=False
            )
        if self.name not in _facts:
            _facts[self.name] = plugin_facts(self.name)
        return _facts[self.name]

    def _run(self, name: str, facts: PluginFacts) -> None:
        made = run_check(name, facts)
        if made.problem:
            raise AssertionError(f"{facts.name}: {made.problem}")
        if made.skipped:
            pytest.skip(made.skipped)

    def test_entry_point_loads(self, facts: PluginFacts) -> None:
        """The module of every entry point can be imported in a fresh interpreter."""
        self._run("entry_point_loads", facts)

    def test_entry_point_is_light(self, facts: PluginFacts) -> None:
        """Importing the entry point, and asking it for its specs, brings no heavy library."""
        self._run("entry_point_is_light", facts)

    def test_import_changes_nothing(self, facts: PluginFacts) -> None:
        """Importing the entry point leaves environment, logging, signals, warnings and the like alone."""
        self._run("import_changes_nothing", facts)

    def test_import_is_silent(self, facts: PluginFacts) -> None:
        """Importing the entry point writes nothing to standard output or error."""
        self._run("import_is_silent", facts)

    def test_api_version_is_stated(self, facts: PluginFacts) -> None:
        """The module says which plugin API it is written for, and it is one that this tunekit speaks."""
        self._run("api_version_is_stated", facts)

    def test_session_loads_it(self, facts: PluginFacts) -> None:
        """A session takes the plugin, without a complaint."""
        self._run("session_loads_it", facts)

    def test_hook_names_are_known(self, facts: PluginFacts) -> None:
        """Every marked function is a hook of tunekit, and every function called like one is marked."""
        self._run("hook_names_are_known", facts)

    def test_hook_signatures_fit(self, facts: PluginFacts) -> None:
        """Hook implementations take arguments of their hook, plainly; wrappers yield."""
        self._run("hook_signatures_fit", facts)

    def test_hooks_have_no_defaults(self, facts: PluginFacts) -> None:
        """No hook implementation gives an argument a default value."""
        self._run("hooks_have_no_defaults", facts)

    def test_specs_are_valid(self, facts: PluginFacts) -> None:
        """The registration hooks return well-formed records, and at least one."""
        self._run("specs_are_valid", facts)

    def test_summaries_are_filled(self, facts: PluginFacts) -> None:
        """Every spec has a summary of one line."""
        self._run("summaries_are_filled", facts)

    def test_names_are_free(self, facts: PluginFacts) -> None:
        """No name is one of tunekit's own, and none is given twice."""
        self._run("names_are_free", facts)

    def test_requirements_are_covered(self, facts: PluginFacts) -> None:
        """Requirements of specs can be read, and installing the distribution, or one of its extras, meets them."""
        self._run("requirements_are_covered", facts)

    def test_options_can_be_imported(self, facts: PluginFacts) -> None:
        """Every options model can be imported and is a pydantic model."""
        self._run("options_can_be_imported", facts)

    def test_options_are_light(self, facts: PluginFacts) -> None:
        """Importing the options models brings no heavy library besides pydantic."""
        self._run("options_are_light", facts)

    def test_options_survive_json(self, facts: PluginFacts) -> None:
        """Defaults come back equal from JSON, which is how a plan file holds them."""
        self._run("options_survive_json", facts)

    def test_options_have_a_schema(self, facts: PluginFacts) -> None:
        """Every options model gives a JSON schema, for editors and user interfaces."""
        self._run("options_have_a_schema", facts)

    def test_options_refuse_unknown_names(self, facts: PluginFacts) -> None:
        """A misspelt option is an error."""
        self._run("options_refuse_unknown_names", facts)

    def test_options_are_documented(self, facts: PluginFacts) -> None:
        """Every option says what it means."""
        self._run("options_are_documented", facts)

    def test_targets_can_be_imported(self, facts: PluginFacts) -> None:
        """Every target can be imported where its requirements are met."""
        self._run("targets_can_be_imported", facts)

    def test_targets_have_the_right_shape(self, facts: PluginFacts) -> None:
        """Every target has the methods of its kind, and they take what tunekit passes."""
        self._run("targets_have_the_right_shape", facts)

    def test_components_change_nothing(self, facts: PluginFacts) -> None:
        """Importing options models and targets leaves environment, logging, signals and the like alone."""
        self._run("components_change_nothing", facts)
