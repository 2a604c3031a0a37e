"""Three small corpora out of the documentation that every Python carries. No download.

Sources: the language topics of ``pydoc_data.topics`` and the docstrings of a fixed list of standard-library
modules, all under the PSF License Version 2. The rows depend on the Python version alone: order and choices come
from SHA-256 of the text, never from ``hash()``. A Python without ``pydoc_data`` gives docstrings only.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tunekit.errors import DataError

__all__ = ["LICENSE", "MODULES", "instruction_rows", "preference_rows", "text_rows"]

LICENSE = "PSF-2.0"

Row = dict[str, Any]

MODULES = (
    "abc", "argparse", "array", "base64", "bisect", "builtins", "calendar", "cmath", "collections",
    "collections.abc", "colorsys", "contextlib", "contextvars", "copy", "csv", "dataclasses", "datetime",
    "decimal", "difflib", "enum", "filecmp", "fnmatch", "fractions", "functools", "getopt", "gettext", "glob",
    "graphlib", "gzip", "hashlib", "heapq", "hmac", "html", "html.parser", "io", "ipaddress", "itertools",
    "json", "keyword", "linecache", "logging", "math", "numbers", "operator", "pathlib", "pickle",
    "posixpath", "pprint", "queue", "random", "re", "reprlib", "sched", "secrets", "shelve", "shlex",
    "shutil", "statistics", "string", "struct", "tempfile", "textwrap", "threading", "time", "timeit",
    "tokenize", "traceback", "types", "typing", "urllib.parse", "uuid", "warnings", "weakref", "zipfile",
    "zlib",
)  # fmt: skip
"""Modules whose import only defines things. Fixed, so that what else is installed changes nothing."""

_SHOWN = {"posixpath": "os.path"}
_PASSAGE = 2000
_INSTRUCTION_ROWS = 400
_PREFERENCE_ROWS = 240
# Bare steps are for trying out: a small model must get through these rows in well under a minute on two cores.
_ANSWER = range(40, 601)


@dataclass(frozen=True)
class _Entry:
    kind: str
    """``module``, ``class``, ``function``, ``method`` or ``topic``."""
    name: str
    doc: str


def text_rows() -> list[Row]:
    """Rows ``{text}``: passages of up to about 2,000 characters, in a fixed mixed order.

    Raises:
        DataError: if Python runs with ``-OO``, which removes docstrings.
    """
    passages: dict[str, None] = {}
    for document in _documents():
        for passage in _passages(document):
            passages.setdefault(passage)
    return [{"text": text} for text in sorted(passages, key=_order)]


def instruction_rows() -> list[Row]:
    """Rows ``{prompt, completion}`` as messages: a question about a topic or name, and how its documentation begins.

    Raises:
        DataError: if Python runs with ``-OO``, which removes docstrings.
    """
    return [{"prompt": _user(pair[1]), "completion": _assistant(pair[2])} for pair in _pairs()[:_INSTRUCTION_ROWS]]


def preference_rows() -> list[Row]:
    """Rows ``{prompt, chosen, rejected}`` as messages.

    Chosen is the right explanation. Rejected is, twice out of three times, the explanation of something else of the
    same kind and nearly the same length, else the right words in a wrong order.

    Raises:
        DataError: if Python runs with ``-OO``, which removes docstrings.
    """
    pairs = _pairs()
    by_kind: dict[str, list[str]] = {}
    for kind, _, answer in sorted(pairs, key=lambda pair: (len(pair[2]), pair[2])):
        by_kind.setdefault(kind, []).append(answer)
    place = {answer: number for answers in by_kind.values() for number, answer in enumerate(answers)}
    rows: list[Row] = []
    for number, (kind, question, answer) in enumerate(pairs):
        if number % 3 == 2:
            wrong = _scrambled(answer)
        else:
            # A neighbour in order of length, on either side in turn, so that length says nothing about which is right.
            others = by_kind[kind]
            at = place[answer] + (3 if number % 2 else -3)
            wrong = others[at if 0 <= at < len(others) else 2 * place[answer] - at]
        if wrong != answer:
            rows.append({"prompt": _user(question), "chosen": _assistant(answer), "rejected": _assistant(wrong)})
    return rows[:_PREFERENCE_ROWS]


def _user(text: str) -> list[Row]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _scrambled(text: str) -> str:
    words = text.split()
    return " ".join(words[i] for i in sorted(range(len(words)), key=lambda i: _order(f"{text}{i}")))


# What is documented


@functools.cache
def _topics() -> dict[str, str]:
    try:
        module = importlib.import_module("pydoc_data.topics")
    except ImportError:
        return {}  # some distributions package it apart; the docstrings alone are enough
    return {str(name): str(text).strip() for name, text in sorted(module.topics.items())}


@functools.cache
def _entries() -> tuple[_Entry, ...]:
    if sys.flags.optimize >= 2 or not textwrap.wrap.__doc__:
        raise DataError(
            "The embedded data sets are made of docstrings, and this Python runs without them (-OO).",
            code="no-docstrings",
            fix="run Python without -OO and without PYTHONOPTIMIZE=2, or pass data of your own",
        )
    found: list[_Entry] = []
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # an optional part of this Python build
        found += _module_entries(module, name)
    return tuple(found)


def _module_entries(module: types.ModuleType, name: str) -> Iterator[_Entry]:
    shown = _SHOWN.get(name, name)
    if module.__doc__:
        yield _Entry("module", shown, inspect.cleandoc(module.__doc__))
    names = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
    for key in sorted(map(str, names)):
        thing = vars(module).get(key)
        home = getattr(thing, "__module__", None)
        if not isinstance(home, str) or home.lstrip("_").partition(".")[0] != name.lstrip("_").partition(".")[0]:
            continue
        called = key if name == "builtins" else f"{shown}.{key}"
        if isinstance(thing, type):
            yield from _class_entries(thing, called)
        elif isinstance(thing, types.FunctionType | types.BuiltinFunctionType | types.MethodType) and thing.__doc__:
            yield _Entry("function", called, inspect.cleandoc(thing.__doc__))


def _class_entries(cls: type, called: str) -> Iterator[_Entry]:
    own = vars(cls)
    if isinstance(own.get("__doc__"), str):
        yield _Entry("class", called, inspect.cleandoc(own["__doc__"]))
    for key in sorted(own):
        member = own[key]
        if key.startswith("_") or isinstance(member, type):
            continue
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        doc = getattr(member, "__doc__", None)
        if callable(member) and isinstance(doc, str) and doc.strip():
            yield _Entry("method", f"{called}.{key}", inspect.cleandoc(doc))


def _documents() -> Iterator[str]:
    """Whole texts: each topic, and each module with its functions and classes; methods of built-in types only."""
    entries = _entries()
    yield from _topics().values()
    held: list[str] = []
    for entry in entries:
        if entry.kind == "module" and held:
            yield "\n\n".join(held)
            held = []
        if entry.kind == "method" and entry.name.count(".") > 1:
            continue
        held.append(f"{entry.name}\n\n{entry.doc}")
    if held:
        yield "\n\n".join(held)


def _passages(text: str) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if held and size + len(paragraph) > _PASSAGE:
            yield "\n\n".join(held)
            held, size = [], 0
        held.append(paragraph.rstrip())
        size += len(paragraph) + 2
    if held and size > 200:
        yield "\n\n".join(held)


# Questions and answers

_QUESTIONS: dict[str, Callable[[str], str]] = {
    "module": lambda name: f"What is the Python module `{name}` for?",
    "class": lambda name: f"What is the Python class `{name}`?",
    "function": lambda name: f"What does the Python function `{name}` do?",
    "method": lambda name: f"What does the Python method `{name}` do?",
    "topic": lambda name: f"What does the Python reference say about: {name}?",
}


@functools.cache
def _pairs() -> tuple[tuple[str, str, str], ...]:
    """(kind, question, answer); answers are unique."""
    made: dict[str, tuple[str, str, str]] = {}
    double: set[str] = set()
    entries = list(_entries())
    for text in _topics().values():
        title, _, body = text.partition("\n")
        entries.append(_Entry("topic", title.strip(), re.sub(r"^[*=\-~^\s]+\n", "", body)))
    for entry in entries:
        answer = _answer(entry.doc)
        if answer is None:
            continue
        if answer in made:
            double.add(answer)  # says the same of several names, so it explains none of them
            continue
        made[answer] = (entry.kind, _QUESTIONS[entry.kind](entry.name), answer)
    questions: dict[str, tuple[str, str, str]] = {}
    for answer, pair in made.items():
        if answer not in double:
            questions.setdefault(pair[1], pair)
    return tuple(sorted(questions.values(), key=lambda pair: _order(pair[1])))


def _answer(doc: str) -> str | None:
    """The first prose paragraphs, on one line; None if there is nothing fit to learn from."""
    parts: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", doc):
        if not _is_prose(paragraph):
            if parts:
                break
            continue
        text = " ".join(paragraph.split())
        if size + len(text) >= _ANSWER.stop:
            break
        parts.append(text)
        size += len(text) + 1
        if size >= 160:
            break
    answer = " ".join(parts)
    if answer.endswith(":"):  # announces a list or an example that is not part of the answer
        answer = answer[: answer.rfind(". ") + 1]
    return answer if len(answer) in _ANSWER else None


def _is_prose(paragraph: str) -> bool:
    if not paragraph.strip() or paragraph[0].isspace() or ">>>" in paragraph or "->" in paragraph or "::=" in paragraph:
        return False
    lines = paragraph.splitlines()
    if any(line.startswith("   ") or re.fullmatch(r"[=*~^\-]{3,}", line.strip()) for line in lines):
        return False
    words = re.findall(r"[A-Za-z]{2,}", paragraph)
    return len(words) >= 5 and paragraph.rstrip()[-1] in ".:!?)" and paragraph.lstrip()[0].isalpha()
