"""Chat logs: ``{"chat": "user: Hello!\\nassistant: Good day."}``, with an optional ``system`` text beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.plugins import RowProblem

ROLES = ("user", "assistant")


def chatlog_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the file as a conversation. A line without a role goes on with the message before it."""
    chat = row["chat"]
    if not isinstance(chat, str):
        raise RowProblem("chat", f"is {type(chat).__name__}, not text")
    messages: list[dict[str, str]] = []
    for line in chat.splitlines():
        role, colon, text = line.partition(":")
        if colon and role.strip().lower() in ROLES:
            messages.append({"role": role.strip().lower(), "content": text.strip()})
        elif messages:
            messages[-1]["content"] += f"\n{line}"
        elif line.strip():
            raise RowProblem("chat", f"begins with {line[:30]!r}, not with 'user:' or 'assistant:'")
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": row["system"]})
    return {"messages": messages}
