"""URLs that hold a password. Plans, reports, events and logs show every option, so none may hold one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunekit.errors import OptionsError

__all__ = ["REASON", "masked", "password_advice", "password_places", "refuse_passwords"]

REASON = "is a URL that holds a password, which plans, reports and logs would show"

# Compiled where a URL is met, which is rare; every script that builds a pipeline would wait for it otherwise.
# One slash is what is left of two where a URL was made a path.
_SCHEME = r"(?i)\s*(?:[a-z][a-z0-9+.-]*:)?(?P<scheme>[a-z][a-z0-9+.-]+):/+"
_START = r"(?i)([a-z][a-z0-9+.-]+:/+)"
_USER = r"[^:/@?#\s\[\]]*:(?P<password>[^@\r\n]+)@"
_PORT_OR_TEXT = r"\d{1,5}[/?#]|\S*\s"
_TOKEN = r"(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-)[\w-]{8,}(?::[^@\s]*)?@"
_NAMES = (
    r"(?:[^=&;#?\s]*(?:password|passwd|passphrase|secret)[^=&;#?\s]*|pwd|pass|api[_-]?key|access[_-]?key|"
    r"(?:(?:access|auth|api|bearer|refresh|session|id|private|hf)[_-]?)?token)"
)
_WEB = ("http", "https", "ws", "wss")

_Path = tuple[str | int, ...]


def _scheme(text: str) -> str | None:
    """The scheme of a URL that holds a password; None for every other text."""
    found = re.match(_SCHEME, text) if ":/" in text else None
    if found is None:
        return None
    from urllib.parse import unquote

    scheme, rest = found["scheme"].lower(), text[found.end() :]
    user = re.match(_USER, rest)
    if user is not None and not (scheme in _WEB and re.match(_PORT_OR_TEXT, user["password"])):
        return scheme
    given = re.match(_TOKEN, rest) or re.search(rf"(?i)[?&;#]{_NAMES}=[^&;#\s]", unquote(rest))
    return scheme if given else None


def masked(text: str) -> str:
    """``text`` with ``***`` in the place of every password in a URL."""
    if ":/" not in text:
        return text
    scheme = _scheme(text)
    if scheme is not None and not re.search(r"\s", text.strip()):
        text = re.sub(rf"{_START}.*", r"\1***", text.strip())
    text = re.sub(rf"{_START}[^:/@?#\s\[\]]*:(?!\d{{1,5}}[/?#])[^@\s]+@", r"\1***@", text)
    text = re.sub(rf"{_START}{_TOKEN}", r"\1***@", text)
    return re.sub(rf"(?i)([?&;#]{_NAMES}=)[^&;#\s]+", r"\1***", text)


def password_places(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, str]]:
    """Where in options, or in a whole plan, a URL holds a password, and its scheme.

    Texts in rows of data that stand in the plan are no options, and may be anything.
    """
    if isinstance(value, str | os.PathLike):
        scheme = _scheme(str(value))
        if scheme is not None:
            yield path, scheme
    elif isinstance(value, Mapping):
        for key, item in value.items():
            scheme = _scheme(key) if isinstance(key, str) else None
            if scheme is not None:
                yield path, scheme  # the key itself must not be shown
            yield from password_places(item, path if scheme is not None else (*path, str(key)))
    elif isinstance(value, list | tuple) and not (path and path[-1] == "prompts"):
        rows = bool(path) and _is_data(path[-1])
        for index, item in enumerate(value):
            if path and path[-1] == "mix" and isinstance(item, list | tuple) and item:
                yield from password_places({"data": item[0]}, (*path, index))
            elif not rows or isinstance(item, str | os.PathLike):
                yield from password_places(item, (*path, index))


def _is_data(key: str | int) -> bool:
    return isinstance(key, str) and (key in ("data", "validation") or key.endswith("_data"))


def password_advice(place: _Path, scheme: str) -> str:
    """What to do instead."""
    if scheme.startswith("postgres"):
        text = (
            "leave it out, postgresql://user@host/database, and put it into the environment variable PGPASSWORD or the "
            "file ~/.pgpass"
        )
        return f"{text}; or pass data=FeedbackStore(url)" if place and _is_data(place[-1]) else text
    return "leave it out of the URL, and keep it in the environment, or in a file such as ~/.netrc"


def refuse_passwords(values: Mapping[str, Any], *, of: str = "") -> None:
    """Refuse options of which one holds a password.

    Args:
        values: options by name.
        of: what they belong to, for people; empty where ``values`` says it.

    Raises:
        OptionsError: code ``password-in-url``. It does not hold the password.
    """
    found = next(password_places(values), None)
    if found is None:
        return
    place, scheme = found
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    what = f"The option {name}" if name else "An option"
    if of:
        what += f" of {masked(of)}"
    raise OptionsError(
        f"{what} {REASON}.",
        code="password-in-url",
        asked=f"{name}={scheme}://..." if name else f"{scheme}://...",
        fix=password_advice(place, scheme),
        details={"option": name, "scheme": scheme},
    )
