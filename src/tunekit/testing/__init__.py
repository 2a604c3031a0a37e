"""A kit of tests for plugins, shipped with tunekit and used by its own plugins.

A test file of a plugin needs two lines per component::

    from tunekit.testing import TrainerSuite

    class TestDpo(TrainerSuite):
        name = "acme-rl/dpo"

and the ``conftest.py`` next to it one: ``pytest_plugins = "tunekit.testing.pytest"``. Each suite runs the component
as a user would, through ``Pipeline``, on tiny models made in memory. Override a fixture or a class attribute to fit it
to the component; declare what the component cannot do yet in ``gaps``.

The suites need pytest: ``pip install 'tunekit[testing]'``. Importing this package brings neither pytest nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunekit._lazy import attach

if TYPE_CHECKING:
    from tunekit.testing.adapter_suite import AdapterSuite as AdapterSuite
    from tunekit.testing.benchmark_suite import BenchmarkSuite as BenchmarkSuite
    from tunekit.testing.checks import Check as Check
    from tunekit.testing.checks import check_plugin as check_plugin
    from tunekit.testing.data_format_suite import DataFormatSuite as DataFormatSuite
    from tunekit.testing.dists import fake_dist as fake_dist
    from tunekit.testing.dists import run_with as run_with
    from tunekit.testing.exporter_suite import ExporterSuite as ExporterSuite
    from tunekit.testing.fakes import save_tiny as save_tiny
    from tunekit.testing.fakes import tiny_model as tiny_model
    from tunekit.testing.fakes import tiny_pair as tiny_pair
    from tunekit.testing.fakes import tiny_tokenizer as tiny_tokenizer
    from tunekit.testing.fakes import toy_rows as toy_rows
    from tunekit.testing.gaps import Gap as Gap
    from tunekit.testing.plugin_suite import PluginSuite as PluginSuite
    from tunekit.testing.quantizer_suite import QuantizerSuite as QuantizerSuite
    from tunekit.testing.recording import RecordingEvents as RecordingEvents
    from tunekit.testing.reward_suite import RewardCase as RewardCase
    from tunekit.testing.reward_suite import RewardSuite as RewardSuite
    from tunekit.testing.sessions import isolated_session as isolated_session
    from tunekit.testing.state import watch_global_state as watch_global_state
    from tunekit.testing.suite import Suite as Suite
    from tunekit.testing.tracker_suite import TrackerSuite as TrackerSuite
    from tunekit.testing.trainer_suite import TrainerSuite as TrainerSuite

_WHERE = {
    "tunekit.testing.adapter_suite": ("AdapterSuite",),
    "tunekit.testing.benchmark_suite": ("BenchmarkSuite",),
    "tunekit.testing.checks": ("Check", "check_plugin"),
    "tunekit.testing.data_format_suite": ("DataFormatSuite",),
    "tunekit.testing.dists": ("fake_dist", "run_with"),
    "tunekit.testing.exporter_suite": ("ExporterSuite",),
    "tunekit.testing.fakes": ("save_tiny", "tiny_model", "tiny_pair", "tiny_tokenizer", "toy_rows"),
    "tunekit.testing.gaps": ("Gap",),
    "tunekit.testing.plugin_suite": ("PluginSuite",),
    "tunekit.testing.quantizer_suite": ("QuantizerSuite",),
    "tunekit.testing.recording": ("RecordingEvents",),
    "tunekit.testing.reward_suite": ("RewardCase", "RewardSuite"),
    "tunekit.testing.sessions": ("isolated_session",),
    "tunekit.testing.state": ("watch_global_state",),
    "tunekit.testing.suite": ("Suite",),
    "tunekit.testing.tracker_suite": ("TrackerSuite",),
    "tunekit.testing.trainer_suite": ("TrainerSuite",),
}

_attribute, __dir__, __all__ = attach(__name__, _WHERE)


def __getattr__(name: str) -> Any:
    try:
        return _attribute(name)
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        from tunekit.errors import MissingDependencyError

        raise MissingDependencyError(
            f"tunekit.testing.{name} needs pytest.",
            asked="pytest>=8.3",
            found="not installed",
            fix="pip install 'tunekit[testing]'",
        ) from error
