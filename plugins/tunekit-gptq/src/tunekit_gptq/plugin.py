"""What tunekit-gptq offers: records only, nothing heavy."""

from __future__ import annotations

api_version = 1
