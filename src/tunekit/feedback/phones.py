"""Phone numbers in texts, told from dates, times, prices, versions and other numbers by their form."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["replace_phones"]

_DAY, _MONTH, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d\d"
_DATE = (
    rf"(?:(?:{_DAY}(?P<a>[ ./-]){_MONTH}(?P=a)|{_MONTH}(?P<b>[ ./-]){_DAY}(?P=b))(?:{_YEAR}|\d\d)"
    rf"|{_YEAR}(?P<c>[./-]){_MONTH}(?P=c){_DAY})(?! ?\d|[./-]\d)"
)
_START = re.compile(
    rf"(?<![\w+$\u20ac\u00a3\u00a5])(?<!\d[.,:/-])(?:(?P<date>{_DATE})|\(?\+\d+\)?|\(\d{{1,5}}\)|0\d+|"
    r"1(?=[ .-]\(?\d{3}\D)|\d{3}(?=[ .-]\d{3}[ .-]\d{4}))"
)
"""A date, or what a phone number can begin with."""
_FIRST = re.compile(r"\((?P<in>\+?\d{1,5})\)|(?P<out>\+?\d+)")
_NEXT = re.compile(r"(?P<sep>[ .-]| ?/ ?|)(?:\((?P<in>\d{1,5})\)|(?P<out>\d{1,12}))")
_END = re.compile(r"(?![\w-]|[.,:/]\d)")
_MOST = 7
"""Groups of digits in a number."""

# ITU-T E.164, list of assigned country codes.
_CODE = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69]\d|3[578]\d|42\d|5[09]\d|6[7-9]\d|8[0578]\d|9[679]\d"
)


class _Group(NamedTuple):
    digits: str
    sep: str
    """What stands before it."""
    inside: bool
    """Whether it is in brackets."""
    end: int


def replace_phones(text: str, by: str) -> str:
    """``text`` with each phone number replaced.

    A phone number is ``+`` or 00, a country code and 9 to 15 digits in all; digits in groups that begin with 0, or with
    an area code in brackets; or digits grouped 3-3-4.
    """
    made, done, at = [], 0, 0
    while (found := _START.search(text, at)) is not None:
        end = None if found["date"] else _phone_end(text, found.start())
        if end is not None:
            made += [text[done : found.start()], by]
            done = end
        at = end or found.end()
    return "".join([*made, text[done:]])


def _phone_end(text: str, start: int) -> int | None:
    """Where the longest phone number that begins at ``start`` ends; None if none does."""
    groups = _groups(text, start)
    behind_number = text[max(start - 2, 0) : start].rstrip(" ")[-1:].isdigit()
    while groups:
        if _END.match(text, groups[-1].end) and _is_phone(groups, behind_number):
            return groups[-1].end
        groups.pop()
    return None


def _groups(text: str, start: int) -> list[_Group]:
    found = _FIRST.match(text, start)
    groups: list[_Group] = []
    while found is not None and len(groups) < _MOST:
        inside = found["in"] is not None
        sep = found["sep"] if groups else ""
        # Only brackets part two groups by themselves.
        if groups and not sep and not (inside or groups[-1].inside):
            break
        groups.append(_Group(found["in"] or found["out"], sep, inside, found.end()))
        found = _NEXT.match(text, found.end())
    return groups


def _is_phone(groups: Sequence[_Group], behind_number: bool) -> bool:
    first = groups[0]
    if any(len(group.digits) < 2 for group in groups[2:]) or any(group.inside for group in groups[2:]):
        return False
    form: Callable[[Sequence[_Group]], bool]
    if first.digits.startswith(("+", "00")):
        form = _international
    elif len(groups) < 2 or (len(groups[1].digits) < 2 and not first.inside):
        return False
    elif first.inside:
        form = _bracketed
    elif first.digits.startswith("0"):
        form = _national
    else:
        form = _american
    # The end of a number whose thousands are set apart by blanks.
    thousands = behind_number and form in (_national, _american) and all(group.sep in ("", " ") for group in groups)
    if thousands and (form is _american or all(len(group.digits) == 3 for group in groups)):
        return False
    return form(groups)


def _international(groups: Sequence[_Group]) -> bool:
    plus = groups[0].digits.startswith("+")
    parts = [groups[0].digits.removeprefix("+" if plus else "00"), *(group.digits for group in groups[1:])]
    if not plus and len(groups) < 2:
        return False
    if not parts[0]:
        parts = parts[1:]
    if len(parts) > 1 and parts[1] == "0":
        del parts[1]  # +49 (0)30 ...
    whole = "".join(parts)
    found = _CODE.fullmatch(parts[0]) if len(parts) > 1 and len(parts[0]) <= 3 else _CODE.match(whole)
    if found is None or not 9 <= len(whole) <= 15:
        return False
    national = whole[found.end() :]
    if found[0] == "1":
        return len(national) == 10 and national[0] not in "01"
    return not national.endswith("000000") and len(set(national)) > 1


def _bracketed(groups: Sequence[_Group]) -> bool:
    area, lengths = groups[0].digits, [len(group.digits) for group in groups[1:]]
    if area == "0":
        return 8 <= sum(lengths) <= 11
    if area.startswith("0"):
        return 8 <= len(area) + sum(lengths) <= 12
    if len(area) == 3:
        return area[0] != "1" and lengths in ([3, 4], [7])
    years = all(re.fullmatch(_YEAR, group.digits) for group in groups[1:])
    return len(area) == 2 and lengths in ([4, 4], [5, 4]) and not years


def _national(groups: Sequence[_Group]) -> bool:
    digits, seps = [group.digits for group in groups], [group.sep for group in groups[1:]]
    lengths = list(map(len, digits))
    if groups[1].inside or lengths[0] < 2 or not (8 if lengths[0] > 2 else 9) <= sum(lengths) <= 12:
        return False
    if any("/" in sep for sep in seps[1:]) or ("/" in seps[0] and (lengths[0] < 3 or lengths[1] < 4)):
        return False
    if set(lengths) == {2} and (len(lengths) != 5 or len(set(seps)) > 1):
        return False
    if seps == ["."] or all(part.startswith("0") for part in digits):
        return False  # a decimal number, or several that are filled up with zeros
    if all(re.fullmatch(r"(?:[01]\d|2[0-3])[0-5]\d", part) for part in digits):
        return False  # times
    if len(digits) > 2 and re.fullmatch(rf"(?:{_DAY} {_MONTH}|{_MONTH} {_DAY}) {_YEAR}", " ".join(digits[:3])):
        return False
    return not (lengths == [4, 4] and seps == ["-"] and _is_issn("".join(digits)))


def _is_issn(digits: str) -> bool:
    """ISO 3297."""
    return sum((8 - place) * int(digit) for place, digit in enumerate(digits)) % 11 == 0


def _american(groups: Sequence[_Group]) -> bool:
    digits, seps = [group.digits for group in groups], {group.sep for group in groups[1:]}
    if digits[0] == "1":
        digits = digits[1:]
    if [len(part) for part in digits] != [3, 3, 4] or any("/" in sep for sep in seps):
        return False
    return digits[0][0] not in "01" or seps == {"-"}
