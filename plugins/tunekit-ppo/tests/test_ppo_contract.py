"""The distribution as a whole."""

from __future__ import annotations

from tunekit.testing import PluginSuite


class TestPlugin(PluginSuite):
    name = "tunekit-ppo"
