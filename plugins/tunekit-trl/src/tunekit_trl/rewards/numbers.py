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

_PART = r"\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\d)"
_NUMBER = re.compile(
    rf"(?<![\w.])[-+\u2212]?\s?\$?\s?(?:(?:\d+\s*)?\\[dt]?frac{_PART}{_PART}|\d+\s+\d+\s?/\s?\d+|"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+)?(?:[eE][-+]?\d+)?%?)"
)
_MIXED = re.compile(r"(-?)(\d+) (\d+)/(\d+)")
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\$")
_CHOICE = re.compile(r"[\s*]*\(([a-zA-Z])\)")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_PHRASE = re.compile(
    r"(?:final\s+answer|answer|result)\s*(?:is|are|:|=)+\s*:?\s*(.+?)(?:(?<!\d)\.(?=\s|$)|\.$|\.\s|\n|$)", re.IGNORECASE
)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_ROOT = re.compile(r"\\sqrt\s*(\d)")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|boldsymbol|operatorname)\s*\{([^{}]*)\}")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\!|(?<=\d)\\,(?=\d{3}(?!\d))")
_SPACE = re.compile(r"\\(?:quad|qquad)(?![a-zA-Z])|\\[,;: ]|~")
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
        # Displayed formulas begin on a line of their own.
        lines_joined = text.replace("\\[\n", "\\[").replace("$$\n", "$$")
        phrases = _PHRASE.findall(lines_joined)
        if phrases:
            return _said(str(phrases[-1]).strip())
        if re.fullmatch(r"\W{0,9}[a-zA-Z]\W{0,9}", text):
            return text.strip()
    return last_number(text)


def _said(phrase: str) -> str:
    """What stands behind "answer is": all of it where it is a number or a formula, its last number in prose."""
    choice = _CHOICE.match(phrase)
    if choice:
        return choice.group(1)
    if number(phrase) is not None or not _WORD.search(_TEXT.sub("", phrase)):
        return phrase
    return last_number(phrase) or phrase


def same_answer(given: str, right: str, tolerance: float = 0.0) -> bool:
    """Whether two answers are the same number, or the same expression after normalisation.

    Numbers are compared exactly, as fractions, whatever form they have (``1,200``, ``0.5``, ``1/2``, ``\\frac12``,
    ``3 1/2``, ``$3``, ``50%`` against ``50``). Several numbers, such as a tuple, are compared as text. ``tolerance`` is
    the largest difference as a share of the right number.
    """
    left, wanted = number(given), number(right)
    if left is not None and wanted is not None:
        return left == wanted or abs(left - wanted) <= Fraction(tolerance) * abs(wanted)
    return normalized(given) == normalized(right) != ""


def number(text: str) -> Fraction | None:
    """The number that a text is; None: it is none, or one with hundreds of digits."""
    plain = normalized(text).removesuffix("%")
    if not plain or len(plain) > _MOST_DIGITS or re.search(r"\d,\s+\d", text):
        return None
    inside = re.fullmatch(r"\(([^(),]+)\)", plain)
    if inside:
        plain = inside.group(1)
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


def normalized(text: str) -> str:
    """An answer without what does not change it: spaces, units, dollar signs, LaTeX that only shapes it."""
    made = text.replace("\u2212", "-").replace("\\$", " ").replace("\\%", "%").replace("{,}", ",")
    made = _DELIMITERS.sub(" ", made)
    made = _TEXT.sub(r"\1", made)
    made = _SPACE.sub(" ", _DROPPED.sub("", made))
    made = _bare(made)
    made = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|\u00b0", "", made)
    before = None
    while before != made:  # fractions within fractions
        before = made
        made = _FRACTION.sub(lambda m: f" {_group(m.group(1) or m.group(2))}/{_group(m.group(3) or m.group(4))} ", made)
    made = _ROOT.sub(r"\\sqrt{\1}", made)
    if "=" in made and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*=.*", made, re.DOTALL):
        made = made.partition("=")[2]  # x = 5
    made = _bare(made)
    if re.match(r"[-+]?[\d.,/\s]+[a-zA-Z]", made):
        made = _UNITS.sub("", made)
    # Two numbers side by side stay two numbers.
    made = re.sub(r"(?<=\d) (?=\d)", "\0", re.sub(r"\s+", " ", made))
    made = made.replace(" ", "").replace("\0", " ").lower()
    if made.startswith("+"):
        made = made[1:]
    choice = _CHOICE.fullmatch(made)
    return choice.group(1) if choice else made


def _bare(text: str) -> str:
    """Without bold print and full stop around it."""
    return text.strip().rstrip(".").strip("* \n").rstrip(".").rstrip()


def _group(text: str | None) -> str:
    inside = (text or "").strip()
    return inside if re.fullmatch(r"-?[\w.\\]+", inside) else f"({inside})"
