"""The prompts that a model completes, token by token. Imports no torch."""

from __future__ import annotations

from tunekit.plugins import hf

__all__ = ["online"]

online = hf.preview_prompts
