"""Final answers of worked solutions, and whether two of them are the same.

GSM8K's answers stand behind ``####`` (Cobbe et al. 2021, arXiv:2110.14168); those of MATH in the last ``\\boxed{}``
(Hendrycks et al. 2021, arXiv:2103.03874). The normalisation of LaTeX follows the list of Lewkowycz et al. 2022
(arXiv:2206.14858, appendix D.1) as far as it is needed for numbers and short expressions.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

__all__ = ["boxed", "final_answer", "last_number", "number", "same_answer"]

_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?\s?\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+)?(?:[eE][-+]?\d+)?%?"
)
_PHRASE = re.compile(
    r"(?:final\s+answer|answer|result)\s*(?:is|are|:|=)+\s*:?\s*(.+?)(?:(?<!\d)\.(?=\s|$)|\.$|\.\s|\n|$)", re.IGNORECASE
)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_ROOT = re.compile(r"\\sqrt\s*(\d)")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname)\s*\{([^{}]*)\}")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|[,;:! ]|quad|qquad)(?![a-zA-Z])|\\[,;:!]|~")
_UNITS = re.compile(
    r"(?:degrees?|dollars?|cents?|percent|meters?|metres?|cm|km|miles?|feet|inches|hours?|minutes?|seconds?|days?|"
    r"years?|units?|apples?|points?)$",
    re.IGNORECASE,
)
_MOST_DIGITS = 400
"""Longer numbers are compared as texts: arithmetic on them may take for ever."""


def boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{}`` (or ``\fbox{}``) holds; braces may be nested. None: there is none."""
    best, found = -1, None
    open_braces: list[int] = []
    for match in _BRACES.finditer(text):
        sign = match.group()
        if sign == "}":
            begin = open_braces.pop() if open_braces else -1
            if begin > best:
                best, found = begin, text[begin : match.start()].strip()
        elif sign.endswith("{") and not sign.startswith("\\{"):
            open_braces.append(match.end() if len(sign) > 1 else -1)
    return found


def last_number(text: str) -> str | None:
    """The last number as it is written; None: there is none."""
    found = [match.group() for match in _NUMBER.finditer(text) if any(sign.isdigit() for sign in match.group())]
    return found[-1].strip() if found else None


def final_answer(text: str, extract: str = "auto") -> str | None:
    """The answer that a solution comes to; None: it gives none.

    Args:
        text: the solution.
        extract: ``gsm8k``: what stands behind the last ``####``; ``boxed``: in the last ``\\boxed{}``; ``last-number``;
            ``text``: all of it; ``auto``: the first of ``boxed``, ``gsm8k``, what follows "answer is", ``last-number``
            that is there.
    """
    if extract == "text":
        return text.strip() or None
    if extract in ("auto", "boxed"):
        inside = boxed(text)
        if inside is not None or extract == "boxed":
            return inside
    if extract in ("auto", "gsm8k"):
        _, mark, behind = text.rpartition("####")
        lines = behind.strip().splitlines()
        if mark and lines:
            return lines[0].strip()
        if extract == "gsm8k":
            return None
    if extract == "auto":
        phrases = _PHRASE.findall(text)
        if phrases:
            said = str(phrases[-1]).strip()
            return last_number(said) if number(said) is None and last_number(said) else said
    return last_number(text)


def same_answer(given: str, right: str, tolerance: float = 0.0) -> bool:
    """Whether two answers are the same number, or the same expression after normalisation.

    Numbers are compared exactly, as fractions, whatever form they have (``1,200``, ``0.5``, ``1/2``, ``\\frac12``,
    ``$3``, ``50%`` against ``50``). ``tolerance`` is the largest difference as a share of the right number.
    """
    left, wanted = number(given), number(right)
    if left is not None and wanted is not None:
        return left == wanted or abs(left - wanted) <= Fraction(tolerance) * abs(wanted)
    return normalized(given) == normalized(right) != ""


def number(text: str) -> Fraction | None:
    """The number that a text is; None: it is none, or one with hundreds of digits."""
    plain = normalized(text).strip("()").removesuffix("%")
    if not plain or len(plain) > _MOST_DIGITS:
        return None
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    whole, slash, below = plain.partition("/")
    try:
        top = Decimal(whole)
        bottom = Decimal(below) if slash else Decimal(1)
    except InvalidOperation:
        return None
    if not top.is_finite() or not bottom.is_finite() or bottom == 0:
        return None
    if max(abs(top.adjusted()), abs(bottom.adjusted())) > _MOST_DIGITS:
        return None
    return Fraction(top) / Fraction(bottom)


def normalized(text: str) -> str:
    """An answer without what does not change it: spaces, units, dollar signs, LaTeX that only shapes it."""
    made = text.strip().replace("\u2212", "-").replace("\\$", "").replace("$", "").replace("\\%", "%")
    made = _TEXT.sub(r"\1", made)
    made = _DROPPED.sub("", made)
    made = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|\u00b0", "", made)
    before = None
    while before != made:  # fractions within fractions
        before = made
        made = _FRACTION.sub(lambda m: f"{_group(m.group(1) or m.group(2))}/{_group(m.group(3) or m.group(4))}", made)
    made = _ROOT.sub(r"\\sqrt{\1}", made)
    if "=" in made and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*=.*", made, re.DOTALL):
        made = made.partition("=")[2]  # x = 5
    made = made.strip().rstrip(".").strip()
    if re.match(r"[-+]?[\d.,/\s]+[a-zA-Z]", made):
        made = _UNITS.sub("", made)
    made = re.sub(r"\s+", "", made).lower()
    if made.startswith("+"):
        made = made[1:]
    return made


def _group(text: str | None) -> str:
    inside = (text or "").strip()
    return inside if re.fullmatch(r"-?[\w.\\]+", inside) else f"({inside})"
