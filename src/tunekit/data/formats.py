"""The known data formats, and how one is found by its name. How one is recognised: :mod:`tunekit.data.detection`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.data.formats_base import Converted, Format, Row
from tunekit.data.formats_chat import CHAT_FORMATS, TEXT_FORMATS
from tunekit.data.formats_judged import FEEDBACK_FORMATS, PREFERENCE_FORMATS, RANKED_FORMATS, RATED_FORMATS
from tunekit.data.formats_labelled import LABELLED_FORMATS
from tunekit.data.formats_trees import TREE_FORMATS
from tunekit.data.prompts import PROMPT_FORMATS
from tunekit.data.readers import TEXT_RULES
from tunekit.data.rows import RowProblem, kind_of
from tunekit.errors import TunekitError
from tunekit.settings import canonical_name

__all__ = ["FORMATS", "FORMAT_NAMES", "Format", "by_name", "guarded"]

FORMATS: tuple[Format, ...] = (
    *PREFERENCE_FORMATS,
    *FEEDBACK_FORMATS,
    *RANKED_FORMATS,
    *RATED_FORMATS,
    *CHAT_FORMATS,
    *TREE_FORMATS,
    *LABELLED_FORMATS,
    *TEXT_FORMATS,
    *PROMPT_FORMATS,
)
"""Every known format; where several fit equally well, the first one that the step accepts is taken."""

FORMAT_NAMES: tuple[str, ...] = (*(form.name for form in FORMATS), *TEXT_RULES)
"""What ``format=`` takes; the last ones are rules for plain text files."""


def by_name(name: str, formats: Sequence[Format] = ()) -> list[Format]:
    """The formats that ``name`` may mean; a text rule gives ``text``.

    A short name is tunekit's own where it has one. ``dist/name`` is that of a distribution, and ``tunekit/name`` the
    own one.
    """
    provider, _, short = name.rpartition("/")
    if canonical_name(provider) in ("", "tunekit"):
        wanted = "text" if short in TEXT_RULES else short
        own = [form for form in FORMATS if form.name == wanted]
        if own or provider:
            return own
    found = [form for form in formats if form.name == short]
    return [form for form in found if canonical_name(form.provider) == canonical_name(provider)] if provider else found


def guarded(form: Format) -> Callable[[Row], Converted]:
    """The conversion of a plugin's format, where whatever goes wrong in it is a problem of the row at hand."""

    def convert(row: Row) -> Converted:
        try:
            made: Any = form.convert(row)
        except (RowProblem, TunekitError):
            raise
        except KeyError as error:
            missing = error.args[0] if error.args else None
            if isinstance(missing, str) and missing not in row:
                raise RowProblem(missing, "is missing") from error
            raise RowProblem("", f"cannot be converted by {form.id}: KeyError: {error}") from error
        except Exception as error:
            raise RowProblem("", f"cannot be converted by {form.id}: {type(error).__name__}: {error}") from error
        if isinstance(made, list | tuple) and all(isinstance(one, Mapping) for one in made):
            return [dict(one) for one in made]
        if not isinstance(made, Mapping):
            raise RowProblem("", f"became {kind_of(made)} in {form.id}, not an object with named fields")
        return dict(made)

    return convert
