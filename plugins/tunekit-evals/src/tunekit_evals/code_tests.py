"""Which function tests are about, and what they need before them. Standard library only."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterable

__all__ = ["defined", "free_names", "tested", "with_imports"]

_USUAL = {
    **dict.fromkeys(("isclose", "sqrt", "pi", "inf", "gcd", "factorial"), "math"),
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque"), "collections"),
}
"""What tests use without import, since the solutions that they were written for import it."""

_DEFINED = re.compile(r"^(?:(?:async\s+)?def|class)\s+([A-Za-z_]\w*)|^([A-Za-z_]\w*)\s*=[^=]", re.MULTILINE)


def defined(code: str) -> list[str]:
    """Names that code, or an answer with code in it, defines at the left margin, in order."""
    return [first or second for first, second in _DEFINED.findall(code.replace("\r\n", "\n"))]


def free_names(tests: str) -> tuple[list[str], list[str], bool]:
    """Names that tests use and neither they nor Python define.

    Returns:
        Those that are functions (called or handed on; the called ones first), those that are modules of the standard
        library, and whether there is a function ``check`` as in HumanEval.

    Raises:
        SyntaxError: if the tests are not Python.
    """
    try:
        tree = ast.parse(tests)
    except (ValueError, RecursionError, MemoryError) as problem:
        raise SyntaxError(str(problem)) from None
    bound, loaded, called, bases = set(dir(builtins)), [], [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (loaded.append(node) if isinstance(node.ctx, ast.Load) else bound.add(node.id))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.append(node.func)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            bases.add(node.value.id)
    modules = sorted(name for name in bases - bound if name in sys.stdlib_module_names)
    places = [*sorted(called, key=_place), *sorted(loaded, key=_place)]
    names = dict.fromkeys(node.id for node in places if node.id not in bound and node.id not in modules)
    has_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    return list(names), modules, has_check


def _place(node: ast.Name) -> tuple[int, int]:
    return node.lineno, node.col_offset


def tested(names: Iterable[str], *sources: str) -> str:
    """The function that tests are about; empty: none.

    Args:
        names: functions that the tests use.
        sources: the answer and the head of the problem: of several names it is the first that one of these defines;
            without names, as in a ``check`` that is handed the function, the last that is defined.
    """
    candidates = list(names)
    made = [name for source in sources for name in defined(source)]
    if not candidates:
        functions = [name for source in sources for name in defined(source)[-1:]]
        return functions[0] if functions else ""
    usual = [name for name in candidates if name not in _USUAL]
    return next((name for name in candidates if name in made), (usual or candidates)[0])


def with_imports(tests: str, names: Iterable[str], modules: Iterable[str], entry: str) -> str:
    """Tests behind the imports that they lack."""
    lines = [f"import {name}" for name in modules]
    lines += [f"from {_USUAL[name]} import {name}" for name in names if name in _USUAL and name != entry]
    return "\n".join([*lines, tests])
