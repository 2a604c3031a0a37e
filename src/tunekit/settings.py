"""What the environment says, read once per session. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

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

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read ``environ``, by default the process environment."""
        env = os.environ if environ is None else environ
        names = (name.strip() for name in env.get("TUNEKIT_DISABLE_PLUGINS", "").split(","))
        return cls(disabled_plugins=tuple(name for name in names if name))

    def disables(self, *names: str) -> bool:
        """Whether one of ``names`` is on the list of disabled plugins."""
        listed = {canonical_name(name) for name in self.disabled_plugins}
        return any(canonical_name(name) in listed for name in names)
