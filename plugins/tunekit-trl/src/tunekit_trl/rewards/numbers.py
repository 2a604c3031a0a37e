"""Whether two answers are the same: numbers by value, lists by their parts, anything else by its text.

The normalisation of LaTeX follows the list of Lewkowycz et al. 2022 (arXiv:2206.14858, appendix D.1) as far as it is
needed for numbers and short expressions.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

__all__ = ["NUMBER", "TEXT", "normalized", "number", "plain_formula", "same_answer"]

_PART = r"\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\d)"
NUMBER = re.compile(
    rf"(?<![\w.])[-+\u2212]?\s?\$?\s?(?:(?:\d+\s*)?\\[dt]?frac{_PART}{_PART}|\d+[^\S\n]+\d+\s?/\s?\d+|"
    r"\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?![,:/]?\d)(?:\.\d+)?%?|"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+)?(?:[eE][-+]?\d+)?%?)"
)
"""A number in a text, with its sign; it may match no digit, and part of an expression."""
_MIXED = re.compile(r"(-?)(\d+) (\d+)/(\d+)")
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\$")
_CHOICE = re.compile(r"[\s*]*\(([a-zA-Z])\)")
_INSIDE = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\[dt]?frac\s*(?:{_INSIDE}|(\d))\s*(?:{_INSIDE}|(\d))")
_ROOT = re.compile(r"\\sqrt\s*(\d)")
TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|boldsymbol|operatorname)\s*\{([^{}]*)\}")
"""LaTeX around words; group 1: the words."""
_UNIT_TEXT = re.compile(
    r"(?<=[\d}$%])\s*(?:\\[,;: ]\s*)?\\(?:text|mathrm|mbox|textrm)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?[.$\s]*$"
)
_DROPPED = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![a-zA-Z])|\\!|(?<=\d)\\,(?=\d{3}(?!\d))")
_SPACE = re.compile(r"\\(?:quad|qquad)(?![a-zA-Z])|(?<!\\)\\[,;: ]|~")
_UNITS = re.compile(
    r"(?:degrees?|dollars?|cents?|percent|meters?|metres?|cm|km|miles?|feet|inches|hours?|minutes?|seconds?|days?|"
    r"years?|units?|apples?|points?)$",
    re.IGNORECASE,
)
_SPACED = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_MEMBER = re.compile(r"[a-zA-Z]\\in(?=[^a-z])")
_SPELLINGS = (
    (re.compile(r"\\(le|ge|ne)q(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"\u221a\s*(\d+)|(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)|\u221a\s*\(([^()]*)\)"), r"\\sqrt{\1\2\3}"),
    (re.compile(r"\u03c0"), r"\\pi "),
    (re.compile(r"\u221e"), r"\\infty "),
    (re.compile(r"\u00b2"), "^2"),
    (re.compile(r"\u00b3"), "^3"),
    (re.compile(r"([\^_])\s*\{\s*(\w)\s*\}"), r"\1\2"),
    (re.compile(r"(?<=\d)\s+and\s+(?=-?\d)"), ", "),
)
_AROUND = "* \n\"'`\u2018\u2019\u201c\u201d"
_MOST_DIGITS = 400
"""Longer numbers are compared as texts: arithmetic on them may take for ever."""


def same_answer(given: str, right: str, tolerance: float = 0.0) -> bool:
    """Whether two answers are the same number, or the same expression after normalisation.

    Numbers are compared exactly, as fractions, whatever form they have (``1,200``, ``1 200``, ``0.5``, ``1/2``,
    ``\\frac12``, ``3 1/2``, ``$3``, ``50%`` against ``50``); a number is never the same as anything else. Lists, tuples
    and intervals are compared part by part, sets (``\\{1, 2\\}``) in any order. ``tolerance`` is the largest difference
    as a share of the right number.
    """
    left, wanted = number(given), number(right)
    if left is not None and wanted is not None:
        return left == wanted or abs(left - wanted) <= Fraction(tolerance) * abs(wanted)
    if left is not None or wanted is not None:
        return False
    ours, theirs = normalized(given), normalized(right)
    return ours != "" and (ours == theirs or _same_parts(ours, theirs, tolerance))


def _same_parts(ours: str, theirs: str, tolerance: float) -> bool:
    left, right = _parts(ours), _parts(theirs)
    if left is None or right is None or left[::2] != right[::2] or len(left[1]) != len(right[1]):
        return False
    rest = list(right[1])
    for part in left[1]:
        places = range(len(rest)) if left[0] == "\\{" else range(1)
        found = next((place for place in places if same_answer(part, rest[place], tolerance)), None)
        if found is None:
            return False
        del rest[found]
    return True


def _parts(text: str) -> tuple[str, list[str], str] | None:
    """Opening bracket, what stands between commas, closing bracket; None: it is no list of two parts and more."""
    if len(text) > _MOST_DIGITS:
        return None
    opened = re.match(r"\\\{|[(\[]|", text)
    closed = re.search(r"(?:\\\}|[)\]]|)\Z", text)
    assert opened is not None and closed is not None
    if bool(opened.group()) != bool(closed.group()):
        return None
    parts, depth = [""], 0
    for sign in text[opened.end() : closed.start()]:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return None
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return (opened.group(), parts, closed.group()) if len(parts) > 1 and all(parts) else None


def number(text: str) -> Fraction | None:
    """The number that a text is; None: it is none, or one with hundreds of digits."""
    if re.search(r"\d,\s+\d", text):
        return None
    plain = normalized(_UNIT_TEXT.sub("", text)).removesuffix("%")
    if not plain or len(plain) > _MOST_DIGITS:
        return None
    inside = re.fullmatch(r"\(([^(),]+)\)", plain)
    if inside:
        plain = inside.group(1)
    if _SPACED.fullmatch(plain):
        plain = plain.replace(" ", "")
    mixed = _MIXED.fullmatch(plain)
    if mixed:
        whole, top, bottom = (int(mixed.group(part)) for part in (2, 3, 4))
        # 5 11/3 is two numbers.
        return (-1 if mixed.group(1) else 1) * (whole + Fraction(top, bottom)) if top < bottom else None
    parts = [_decimal(part) for part in plain.split("/", 1)]
    if None in parts or (len(parts) == 2 and parts[1] == 0):
        return None
    known = [Fraction(part) for part in parts if part is not None]
    return known[0] / known[1] if len(known) == 2 else known[0]


def _decimal(text: str) -> Decimal | None:
    try:
        made = Decimal(text.replace(",", "") if _GROUPED.fullmatch(text) else text)
    except InvalidOperation:
        return None
    return made if made.is_finite() and abs(made.adjusted()) <= _MOST_DIGITS else None


def plain_formula(text: str) -> str:
    """A text without what only marks, shapes or spaces formulas: the numbers in it stand as they are read."""
    return TEXT.sub(r" \1 ", _SPACE.sub(" ", _undelimited(text)))


def _undelimited(text: str) -> str:
    made = text.replace("\u2212", "-").replace("\\$", " ").replace("\\%", "%").replace("{,}", ",")
    return _DROPPED.sub("", _DELIMITERS.sub(" ", made))


def normalized(text: str) -> str:
    """An answer without what does not change it: spaces, units, dollar signs, LaTeX that only shapes it."""
    made = _SPACE.sub(" ", TEXT.sub(r"\1", _undelimited(text)))
    made = _bare(made)
    for spelling, usual in _SPELLINGS:
        made = spelling.sub(usual, made)
    made = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|\u00b0", "", made)
    made = _ROOT.sub(r"\\sqrt{\1}", made)
    before = None
    while before != made:  # fractions within fractions
        before = made
        made = _FRACTION.sub(lambda m: f" {_group(m.group(1) or m.group(2))}/{_group(m.group(3) or m.group(4))} ", made)
    if "=" in made and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*=.*", made, re.DOTALL):
        made = made.partition("=")[2]  # x = 5
    made = _bare(made)
    if re.match(r"[-+]?[\d.,/\s]+[a-zA-Z]", made):
        made = _UNITS.sub("", made)
    # Two numbers side by side stay two numbers.
    made = re.sub(r"(?<=\d) (?=\d)", "\0", re.sub(r"\s+", " ", made))
    made = made.replace(" ", "").replace("\0", " ").lower()
    made = _MEMBER.sub("", made) if _MEMBER.match(made) else made
    if made.startswith("+"):
        made = made[1:]
    choice = _CHOICE.fullmatch(made)
    return choice.group(1) if choice else made


def _bare(text: str) -> str:
    """Without bold print, quotation marks and full stop around it."""
    made = text.strip().rstrip(".").strip(_AROUND).rstrip(".").rstrip()
    return re.sub(r"(?<=[a-z]{2})!+$", "", made)


def _group(text: str | None) -> str:
    inside = (text or "").strip()
    return inside if re.fullmatch(r"-?(?:[\w.\\]+|\\sqrt\{\w+\})", inside) else f"({inside})"
