r"""What a completion comes to, and whether that is the right answer.

GSM8K's answers stand behind ``####`` (Cobbe et al. 2021, arXiv:2110.14168), those of MATH in the last ``\boxed{}``
(Hendrycks et al. 2021, arXiv:2103.03874), those of DeepSeek-R1 between ``<answer>`` and ``</answer>`` behind its
thoughts (arXiv:2501.12948). Where nothing marks the answer, it depends on the right one what may count as such: beside
a number the last number, beside a letter the last choice, beside a text only a text that stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunekit_trl.rewards.numbers import NUMBER, TEXT, normalized, number, plain_formula, same_answer

__all__ = ["boxed", "final_answer", "last_number", "right_answer", "wanted_answer"]

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_ANSWER_TAG = re.compile(r"<answer>(?!.*<answer>)(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:\b(?:answer|result|solution)|\b(?:correct|right)\s+(?:option|choice))"
    r"(?:\s+(?:to|of|for)\s[^.:\n]{1,80}?)?[*_\s]*(?:\bis\b|\bare\b|:|=)(?:[*_\s]*:)?[*_]*\s*(?=\S)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<!\d)\.(?=\s)|(?<=\d)\.(?=\s)")
_ASIDE = re.compile(
    r"\s*[,;]\s+(?![-+$\\({\[]?\s?\d)|\s(?:because|since|as|so|but|not|instead|rather|where|when|if|due|from)\b|"
    r"\s[-\u2013\u2014]\s(?=[a-zA-Z]{2})"
)
_BRACKET = re.compile(r"\s+\(")
_FORMULA = re.compile(
    r"(?:\$\$?(?P<a>[^$]+)\$\$?|\\\((?P<b>.+?)\\\)|\\\[(?P<c>.+?)\\\])(?!\s*(?:or|and|,)\s)", re.DOTALL
)
_EQUALS = re.compile(r"(?<![<>!:])=|\u2248|\\approx\b|\bequals?\b")
_WORDED = re.compile(r"\s*(?:plus|minus|times|multiplied|divided|over|of\s+\$?\d|percent\s+of)\b", re.IGNORECASE)
_HEDGE = re.compile(r"\s*(?:,|\bor\b|\band\b|\bto\b)\s*[-+$]?\d", re.IGNORECASE)
_NEGATED = re.compile(r"(?:not|no longer|never|neither)\b", re.IGNORECASE)
_CHOICE = re.compile(
    r"[\s*_(\[]*(?:option\s+|choice\s+)?\(?([a-zA-Z])(?:[\s*_]*[)\]:*]|\.(?=\s|$)|[\s*_]*[,;]|[\s*_]*[.!]*\s*$|"
    r"\s+(?:because|since|as|\())",
    re.IGNORECASE,
)
_CHOICE_IN_TEXT = re.compile(r"\(([A-Z])\)|\b(?:option|choice)\s+\(?([A-Z])\b")
_VERDICTS = ("yes", "no", "true", "false")
_VERDICT = re.compile(rf"\W*({'|'.join(_VERDICTS)})\b(?=\s*(?:[.,;:!*]|[-\u2013\u2014]\s|$))", re.IGNORECASE)

# What stands beside a number and makes it a part of something else.
_OPERATOR = r"(?:[+*/^:\u00d7\u00b7\u00f7\u2013\u2014-]|\\(?:times|cdot|div|pm|mp)(?![a-zA-Z])|\\\\)"
_OPERAND = r"(?:\d%?|[)\]}!]|(?<![a-zA-Z])[a-zA-Z])"
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_BEHIND_OPERATOR = re.compile(rf"{_OPERAND}(?:{_OPERATOR}|\s+{_OPERATOR}\s+)\Z")
_BEHIND_OPERAND = re.compile(rf"{_OPERAND}\s+\Z")
_BEHIND_NUMBER = re.compile(r"\d\s*(?:,|\bor\b|\band\b)\s*\Z")
_BEHIND_COMMAND = re.compile(
    r"(?:[\^_\\\u221a{\u00b1\u2213]|\bmod|\\(?:pm|mp|l[et]q?|g[et]q?|neq?|log|ln|exp|sin|cos|tan|cot|sec|csc|sqrt|[bp]?mod)"
    r"(?:_\{?\w+\}?)?(?:\^\{?\w+\}?)?)\Z"
)
_BEHIND_COMPARISON = re.compile(r"[<>\u2264\u2265]\Z")
_NO_COMPARISON = re.compile(r"(?:</?\w+>|[-=]>|^[ \t]*>)\Z", re.MULTILINE)
_SECOND_VALUE = re.compile(r"([a-zA-Z]\w*)\s*=\s*\S+\s*(?:,|\bor\b|\band\b)\s*\1\s*=\Z")
_POWER_OF_UNIT = re.compile(r"(?:\b|\d)(?:[ckm]m|in|ft|units?|inches|feet|met(?:er|re)s)\s*\^\s*\{?\Z")
_VARIABLE = re.compile(r"\s+[bcdefijknpqrtuvwxyz](?![a-zA-Z])")
_BEFORE_OPERAND = r"(?=\d|\(|\\[a-zA-Z]|[a-zA-Z](?![a-zA-Z]))"
_BEFORE_OPERATOR = re.compile(rf"{_OPERATOR}{_BEFORE_OPERAND}|\s+{_OPERATOR}\s+{_BEFORE_OPERAND}")
_UNIT = re.compile(r"(?:[ckm]m|[km]g|km/h|mph|ml|hrs?|mins?|secs?|lbs?|ft|in|oz|degrees?)\b")
_HARMLESS = re.compile(r"\s*(?:\\(?:q?quad|[,;: ]|degree|right)(?![a-zA-Z])|\^\s*\{?\s*\\circ)")


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
    r"""The last number as it is written; None: there is none, or it is part of an expression, a list, a date or a time.

    So ``\sqrt{2}``, ``x^2``, ``3x``, ``(1, 2)``, ``7:30`` and ``5 + 3`` hold no number, and ``5 + 3 = 8`` holds 8.
    """
    found = None
    plain = plain_formula(text)
    for match in NUMBER.finditer(plain):
        written = match.group()
        if any(sign.isdigit() for sign in written) and not (
            _ORDINAL.match(plain, match.end())
            or _POWER_OF_UNIT.search(plain[max(0, match.start() - 20) : match.start()])
        ):
            found = match
    return _free(plain, found) if found else None


def final_answer(text: str, extract: str) -> str | None:
    """The answer that stands in one place of a solution; None: there is none.

    Args:
        text: the solution.
        extract: ``gsm8k``: what stands behind the last ``####``; ``boxed``: in the last ``\\boxed{}``; ``last-number``;
            ``text``: all of it.
    """
    if extract == "boxed":
        return boxed(text)
    if extract == "gsm8k":
        return _behind_hashes(text)
    return last_number(text) if extract == "last-number" else text.strip() or None


def right_answer(completion: str, right: str, extract: str = "auto", tolerance: float = 0.0) -> bool:
    """Whether a completion comes to the right answer.

    Args:
        completion: what the model wrote.
        right: the right answer alone, see :func:`wanted_answer`.
        extract: where the answer stands, see :func:`final_answer`. ``auto``: the whole completion; else, behind the
            thoughts, the first that is there of the last ``<answer>...</answer>``, ``boxed``, ``gsm8k``, what follows
            "answer is", the last line or, beside a number, ``last-number``.
        tolerance: largest difference of numbers, as a share of the right one.
    """
    if extract != "auto":
        given = final_answer(completion, extract)
        if given is None:
            return False
        strict = extract in ("text", "last-number")
        return same_answer(given, right, tolerance) if strict else _comes_to(given, right, tolerance)
    if same_answer(completion, right, tolerance):
        return True
    answer = _spoken(completion)
    if answer != completion and same_answer(answer, right, tolerance):
        return True
    marked = _marked(answer)
    if marked is not None:
        return _comes_to(marked, right, tolerance)
    phrase = _phrase(answer)
    if phrase is not None:
        return _comes_to(phrase, right, tolerance)
    return _unmarked(answer, right, tolerance)


def wanted_answer(right: str, extract: str = "auto") -> str:
    """The answer of a column, of which worked solutions give only the last part."""
    if extract == "text":
        return right
    marked = _marked(_spoken(right))
    if marked is not None:
        return marked
    phrase = _phrase(right)
    if phrase is not None:
        return _SENTENCE.split(phrase.partition("\n")[0])[0].strip()
    if extract == "last-number":
        return last_number(right) or right
    return _spoken(right)


def _spoken(text: str) -> str:
    """A completion without its thoughts, and of ``<answer>...</answer>`` the last inside; thoughts without an end say
    nothing."""
    behind = text.rpartition("</think>")[2]
    if behind == text and "<think>" in text:
        return ""
    tag = _ANSWER_TAG.search(behind)
    return tag.group(1).strip() if tag else behind


def _marked(text: str) -> str | None:
    inside = boxed(text)
    return _behind_hashes(text) if inside is None else inside


def _behind_hashes(text: str) -> str | None:
    _, mark, behind = text.rpartition("####")
    lines = behind.strip().splitlines()
    return lines[0].strip() if mark and lines else None


def _phrase(text: str) -> str | None:
    """What follows the last "answer is" up to the end of its line, or of the formula that stands there; None: nothing
    does, or it says what the answer is not."""
    # Displayed formulas have lines of their own.
    joined = re.sub(r"(\\\[|\$\$)[ \t]*\n", r"\1 ", re.sub(r"\n[ \t]*(\\\]|\$\$)[ \t]*(?=\n|$)", r" \1", text))
    found = None
    for match in _PHRASE.finditer(joined):
        line = joined[match.end() :].partition("\n")[0].strip()
        if line.strip("*_ ") and not _NEGATED.match(line):
            found = line
    return found


def _comes_to(said: str, right: str, tolerance: float) -> bool:
    """Whether what stands where an answer belongs is the right one, also with words around it."""
    parts = list(_beginnings(said))
    if any(same_answer(part, right, tolerance) for part in parts):
        return True
    if number(right) is not None:
        given = _leading_number(parts[-1])
        return given is not None and same_answer(given, right, tolerance)
    return _is_choice(right) and _same_choice(_CHOICE.match(TEXT.sub(r"\1", said)), right)


def _beginnings(said: str) -> Iterator[str]:
    """All of it, a formula in front, the first sentence, and that without a clause at its end and without brackets."""
    yield said
    formula = _FORMULA.match(said)
    if formula:
        yield next(part for part in formula.groups() if part is not None)
    sentence = _SENTENCE.split(said)[0].strip()
    yield sentence
    clause = _ASIDE.split(sentence)[0].strip()
    yield clause
    bracket = _BRACKET.search(clause)
    words = bracket is not None and re.search(r"[a-zA-Z]{2}", clause[bracket.end() :])
    yield clause[: bracket.start()] if bracket and words else clause


def _leading_number(clause: str) -> str | None:
    """The number of a clause such as "3 apples" or "9 * 2 = 18 dollars"; None: there is none, or a choice of them."""
    plain = plain_formula(clause)
    signs = list(_EQUALS.finditer(plain))
    begin = plain[signs[-1].end() :] if signs else plain
    begin = begin.lstrip(" *_\"'`(")
    match = NUMBER.match(begin)
    if match is None or not any(sign.isdigit() for sign in match.group()):
        return last_number(begin)
    if _HEDGE.match(begin, match.end()):
        return None
    if _WORDED.match(begin, match.end()):
        return last_number(begin[match.end() :])
    # One letter behind a space is a variable, a word a unit.
    variable = re.match(r"\s+[a-zA-Z](?![a-zA-Z])", begin[match.end() :])
    return None if variable else _free(begin, match)


def _unmarked(text: str, right: str, tolerance: float) -> bool:
    """Whether a completion that marks no answer comes to the right one."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return False
    if same_answer(lines[-1], right, tolerance):
        return True
    if number(right) is not None:
        given = last_number(text)
        return given is not None and same_answer(given, right, tolerance)
    if normalized(right) in _VERDICTS:
        said = _VERDICT.match(lines[-1]) or _VERDICT.match(lines[0])
        return said is not None and said.group(1).lower() == normalized(right)
    if _is_choice(right):
        begun = _CHOICE.match(lines[-1])
        named = {first or second for first, second in _CHOICE_IN_TEXT.findall(text)}
        return _same_choice(begun, right) if begun else {name.lower() for name in named} == {normalized(right)}
    return False


def _is_choice(right: str) -> bool:
    return re.fullmatch(r"[a-z]", normalized(right)) is not None


def _same_choice(match: re.Match[str] | None, right: str) -> bool:
    return match is not None and match.group(1).lower() == normalized(right)


def _free(text: str, match: re.Match[str]) -> str | None:
    """A number as it is written; None if it is part of something else."""
    written = match.group().strip()
    start = match.end() - len(match.group().lstrip())
    before, behind = text[:start], text[match.end() :]
    if re.match(r"[-+]\s", written):
        if _BEHIND_OPERAND.search(before):
            return None  # 5 - 3
        if not before.rpartition("\n")[2].strip():
            written = written[1:].strip()  # a list's dash
    return written if _begins(before, behind) and _ends(before, behind) else None


def _begins(before: str, behind: str) -> bool:
    near = before.rstrip()
    if _BEHIND_COMMAND.search(near[-40:]) or re.search(r"\d[,.:/]\Z", before) or before[-1:].isalpha():
        return False
    if _BEHIND_COMPARISON.search(near) and not _NO_COMPARISON.search(near):
        return False
    if near.endswith("="):
        return not _SECOND_VALUE.search(near[-80:])
    if _BEHIND_OPERATOR.search(before):
        return False
    if _BEHIND_NUMBER.search(before) and re.match(r"\s*(?:[.!?)\]}]|,(?!\s*[a-zA-Z]{2})|$|\n)", behind):
        return False  # 1, 2 and 3
    return not _in_brackets(before, behind)


def _in_brackets(before: str, behind: str) -> bool:
    """Whether a number stands in brackets with other parts of a formula, or those of a function."""
    depth = 0
    for place in range(len(before) - 1, max(-1, len(before) - 200), -1):
        sign = before[place]
        depth += (sign in ")]}") - (sign in "([{")
        if depth < 0:
            inside, rest = before[place + 1 :], re.split(r"[)\]}]", behind, maxsplit=1)[0]
            if re.search(r"[a-zA-Z]{2}", inside + rest):
                return False
            return bool(inside.strip(" *$") or rest.strip(" *$%")) or before[place - 1 : place].isalnum()
    return False


def _ends(before: str, behind: str) -> bool:
    if _HARMLESS.match(behind) or _UNIT.match(behind):
        return True
    if behind[:1].isalpha() or re.match(
        r"[\^_({\u221a\u00b2\u00b3\u00bd\u00bc\u00be]|[,.:/]\d|\s*\\[a-zA-Z]|\s*\u221a", behind
    ):
        return False
    return not (_BEFORE_OPERATOR.match(behind) or _VARIABLE.match(behind))
