"""Names of a package that are imported on first use (PEP 562)."""

from __future__ import annotations

import sys

# Type checkers take this name for true. The module typing itself would be the dearest import of `import tunekit`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

__all__ = ["attach", "load_target"]


def attach(
    package: str, where: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` for ``package``, given module -> names it provides."""
    module_of = {name: module for module, names in where.items() for name in names}

    def __getattr__(name: str) -> Any:  # noqa: N807
        import importlib

        try:
            module = module_of[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted(module_of)

    return __getattr__, __dir__, sorted(module_of)


def load_target(target: str) -> Any:
    """The object behind an import string ``"pkg.module:attribute"``.

    Raises:
        ImportError: if the module cannot be imported.
        AttributeError: if it has no such attribute.
        ValueError: if the string has another form.
    """
    import importlib

    module, colon, attribute = target.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"{target!r} is not of the form 'pkg.module:attribute'")
    value: Any = importlib.import_module(module)
    for part in attribute.split("."):
        value = getattr(value, part)
    return value
