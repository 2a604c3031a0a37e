"""Taking personal data out of texts before they are stored or exported."""

from __future__ import annotations

import ipaddress
import re

__all__ = ["redact_pii"]

_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_PHONE = re.compile(r"(?<![\w+.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{1,8}(?:[ .-]\d{2,8}){1,5}(?![\w-]|\.\d)")
_PLUS = re.compile(r"(?<![\w+])\+\d{8,15}(?!\w)")
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)"
)
_KEY = re.compile(r"(?<![\w-])(?:sk-[\w-]{20,}|gh[pousr]_\w{30,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,})(?![\w-])")


def redact_pii(text: str) -> str:
    """``text`` with what has the form of personal data replaced by ``<EMAIL>``, ``<PHONE>``, ``<CARD>``, ``<IBAN>``,
    ``<SSN>``, ``<IP>`` or ``<KEY>``.

    Card numbers must pass the Luhn check, IBANs the check of ISO 7064, and IP addresses must be valid and neither
    loopback nor unspecified, so that ordinary numbers stay. Phone numbers are digits in groups that begin with ``+``,
    ``(`` or 0, or are grouped 3-3-4. Names and street
    addresses have no form: for those use a hook of your own, with a recogniser of your language.
    """
    text = _KEY.sub("<KEY>", text)
    text = _MAIL.sub("<EMAIL>", text)
    text = _IBAN.sub(lambda found: "<IBAN>" if _is_iban(found[0]) else found[0], text)
    text = _CARD.sub(lambda found: "<CARD>" if _is_card(found[0]) else found[0], text)
    text = _SSN.sub("<SSN>", text)
    text = _ADDRESS.sub(lambda found: "<IP>" if _is_address(found[0]) else found[0], text)
    text = _PLUS.sub("<PHONE>", text)
    return _PHONE.sub(lambda found: "<PHONE>" if _is_phone(found[0]) else found[0], text)


def _is_card(text: str) -> bool:
    digits = [int(letter) for letter in text if letter.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    packed = text.replace(" ", "")
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in packed[4:] + packed[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_AMERICAN = re.compile(r"\d{3}[ .-]\d{3}[ .-]\d{4}")


def _is_phone(text: str) -> bool:
    digits = sum(letter.isdigit() for letter in text)
    return 7 <= digits <= 15 and (text[0] in "+(0" or _AMERICAN.fullmatch(text) is not None)
