"""Taking personal data out of texts before they are stored or exported."""

from __future__ import annotations

import ipaddress
import re

from tunekit.feedback.phones import replace_phones

__all__ = ["redact_pii"]

_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])")
_CARD = re.compile(
    r"(?<![\w.,-])(?<!\d )(?:\d{13,19}|\d{4}(?P<s>[ -])\d{4}(?P=s)\d{4}(?P=s)\d{1,4}(?:(?P=s)\d{1,3})?|"
    r"\d{4}(?P<t>[ -])\d{6}(?P=t)\d{4,5})(?![\w-]| \d|[.,]\d)"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)"
)
_VERSION = re.compile(r"\b(?:version|release|build|ver\.?|v\.?|section|chapter)\s*$", re.IGNORECASE)
_KEY = re.compile(r"(?<![\w-])(?:sk-[\w-]{20,}|gh[pousr]_\w{30,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,})(?![\w-])")


def redact_pii(text: str) -> str:
    """``text`` with what has the form of personal data replaced by ``<EMAIL>``, ``<PHONE>``, ``<CARD>``, ``<IBAN>``,
    ``<SSN>``, ``<IP>`` or ``<KEY>``.

    Card numbers must pass the Luhn check, IBANs the check of ISO 7064, and IP addresses must be valid and neither
    loopback nor unspecified, so that ordinary numbers stay. Phone numbers begin with ``+`` or 00 and a country code,
    are digits in groups of which the first begins with 0 or is an area code in brackets, or are grouped 3-3-4. Dates,
    times, prices, versions, and numbers with their thousands apart are none. A local number without any prefix, or one
    in one piece without ``+``, looks like any other number and stays. Names and street addresses have no form: for
    those use a hook of your own, with a recogniser of your language.
    """
    text = _KEY.sub("<KEY>", text)
    text = _MAIL.sub("<EMAIL>", text)
    text = _IBAN.sub(lambda found: "<IBAN>" if _is_iban(found[0]) else found[0], text)
    text = _CARD.sub(lambda found: "<CARD>" if _is_card(found[0]) else found[0], text)
    text = _SSN.sub("<SSN>", text)
    text = _ADDRESS.sub(lambda found: "<IP>" if _is_address(found) else found[0], text)
    return replace_phones(text, "<PHONE>")


def _is_card(text: str) -> bool:
    digits = [int(letter) for letter in text if letter.isdigit()]
    # No issuer's numbers begin otherwise (ISO/IEC 7812), but times in milliseconds and book numbers do.
    if not 13 <= len(digits) <= 19 or not 2 <= digits[0] <= 6 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    packed = text.replace(" ", "")
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in packed[4:] + packed[:4])) % 97 == 1


def _is_address(found: re.Match[str]) -> bool:
    if _VERSION.search(found.string[max(found.start() - 16, 0) : found.start()]):
        return False
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)
