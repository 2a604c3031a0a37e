"""What the environment says, read once per session. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Settings", "canonical_name"]


def canonical_name(name: str) -> str:
    """A distribution name in the one spelling that package indexes compare: ``Acme_RL`` is ``acme-rl``."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a session.

    They come from the environment only through :meth:`from_env`; a product that embeds tunekit can build its own.
    """

    disabled_plugins: tuple[str, ...] = ()
    """Distributions or entry-point names that are not loaded (``TUNEKIT_DISABLE_PLUGINS``, separated by commas)."""
    allowed_plugins: tuple[str, ...] | None = None
    """Distributions that may be loaded, and no others (``TUNEKIT_ALLOW_PLUGINS``, separated by commas). None (variable
    not set): all. tunekit's own and what is handed to the session are always allowed; a disabled plugin never is."""
    _environment: bool = field(default=False, repr=False, compare=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read ``environ``, by default the process environment."""
        env = os.environ if environ is None else environ
        allowed = env.get("TUNEKIT_ALLOW_PLUGINS")
        return cls(
            disabled_plugins=_names(env.get("TUNEKIT_DISABLE_PLUGINS", "")),
            allowed_plugins=None if allowed is None else _names(allowed),
            _environment=True,
        )

    def disables(self, *names: str) -> bool:
        """Whether one of ``names`` is on the list of disabled plugins."""
        return bool(self.disabled_plugins) and _listed(names, self.disabled_plugins)

    def allows(self, provider: str) -> bool:
        """Whether the list of allowed plugins, if there is one, names this distribution.

        Names of entry points do not count here: any distribution may choose them.
        """
        return self.allowed_plugins is None or _listed((provider,), self.allowed_plugins)

    def refusal(self, name: str, provider: str) -> str:
        """Why an installed plugin is not loaded; empty if it may be.

        Args:
            name: name of its entry point.
            provider: its distribution.
        """
        if self.disables(name, provider):
            return f"listed in {'TUNEKIT_DISABLE_PLUGINS' if self._environment else 'Settings.disabled_plugins'}"
        if not self.allows(provider):
            return f"not listed in {'TUNEKIT_ALLOW_PLUGINS' if self._environment else 'Settings.allowed_plugins'}"
        return ""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _listed(names: Iterable[str], listed: Iterable[str]) -> bool:
    return not {canonical_name(name) for name in names}.isdisjoint(map(canonical_name, listed))
