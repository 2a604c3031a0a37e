"""What PPO asks, token by token. Imports no torch."""

from __future__ import annotations

from tunekit.plugins import hf

__all__ = ["prompts"]

prompts = hf.preview_prompts
