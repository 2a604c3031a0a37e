"""What is taken out of texts as personal data, and what stays."""

from __future__ import annotations

import pytest

from tunekit.feedback import redact_pii

PHONES = [
    "+49 30 1234567",
    "+49 (0)30 1234567",
    "+49(30)1234567",
    "+491701234567",
    "(+49) 30 1234567",
    "0049 30 1234567",
    "+1 (555) 123-4567",
    "+1-555-123-4567",
    "+1.555.123.4567",
    "1-800-555-0199",
    "+44 20 7946 0958",
    "+61 2 9374 4000",
    "+353 1 234 5678",
    "+33 6 12 34 56 78",
    "+86 138 0013 8000",
    "+7 495 123-45-67",
    "+91 98765 43210",
    "030 1234567",
    "030/1234567",
    "030 / 1234567",
    "0171-1234567",
    "(030) 1234567",
    "(0)30 1234567",
    "020 7946 0958",
    "01234 567890",
    "01 23 45 67 89",
    "01.23.45.67.89",
    "03-1234-5678",
    "02 9374 4000",
    "044 123 45 67",
    "010-1234-5678",
    "0800 123 4567",
    "(11) 91234-5678",
    "(555) 123-4567",
    "(555) 1234567",
    "555-123-4567",
    "555.123.4567",
    "555 123 4567",
    "123-456-7890",
]
NUMBERS = [
    "2024-03-15",
    "15.03.2024",
    "12.05.2023",
    "05.12.2023",
    "01.02.24",
    "03/15/2024",
    "05-12-2023",
    "05 12 2023",
    "2024.03.05",
    "2024-03-15 08:30",
    "05.12.2023 14:30",
    "2024-03-15T08:30:00+01:00",
    "from 01.02.2024 to 03.04.2024",
    "01.02.2024-03.04.2024",
    "2023-10-01 2023-12-01",
    "08.30-12.45",
    "open 0800 1200 and 0900 1700",
    "1999 2000 2001 2002",
    "in 2019-2020",
    "(2019) 2020-21",
    "0.99 1.29 2.49",
    "1,299.00 and 1.499,00",
    "$1 250 000 000",
    "$555 123 4567",
    "12 345 678 9012",
    "12 045 678 901",
    "1.234.567.890",
    "+5 000 000",
    "+25 000 000",
    "-0.12345678",
    "0.10.12345",
    "0.12.345.6789",
    "version 10.0.19041.1",
    "version 1.2.3.4",
    "v02.10.2345",
    "torch 2.11.0, 4.57.3",
    "001 002 003 004",
    "0012 0013 0014",
    "01 02 03 04 05",
    "00-11-22-33",
    "3.14159 26535",
    "0.00012 0.00345",
    "arXiv:0704.0001",
    "ISSN 0317-8471",
    "ISBN 978-3-16-148410-0",
    "9783161484100",
    "at 1700000000000 ms",
    "id 12345678901234",
    "order 100-200-300",
    "1-2-3",
    "12:30:45",
    "50 000 - 60 000",
    "x = 0123456789",
]


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("DE89 3704 0044 0532 0130 00 is it", "<IBAN> is it"),
        ("call (555) 123-4567 or 555-123-4567", "call <PHONE> or <PHONE>"),
        (
            "in 2019 2020 2021, 12 345 678 people, 3.14159, 1-2-3",
            "in 2019 2020 2021, 12 345 678 people, 3.14159, 1-2-3",
        ),
        ("4111 1111 1111 1112 fails Luhn", "4111 1111 1111 1112 fails Luhn"),
        ("at 12:30:45 version 1.2.3.4.5, 127.0.0.1", "at 12:30:45 version 1.2.3.4.5, 127.0.0.1"),
        ("2001:db8::8a2e:370:7334", "<IP>"),
    ],
)
def test_what_has_the_form_of_personal_data(text: str, due: str) -> None:
    assert redact_pii(text) == due


@pytest.mark.parametrize("text", PHONES)
def test_what_is_a_phone_number(text: str) -> None:
    assert redact_pii(text) == "<PHONE>"
    assert redact_pii(f"On 05.12.2023 call {text}, or in 2024: tel:{text}.") == (
        "On 05.12.2023 call <PHONE>, or in 2024: tel:<PHONE>."
    )


@pytest.mark.parametrize("text", NUMBERS)
def test_what_is_no_phone_number(text: str) -> None:
    assert redact_pii(text) == text
    said = f"It is {text}, they say: 030 1234567."
    assert redact_pii(said) == said.replace("030 1234567", "<PHONE>")


def test_a_phone_number_among_numbers() -> None:
    assert redact_pii("2024-03-15 030 1234567 2019") == "2024-03-15 <PHONE> 2019"
    assert redact_pii("since 2019 030-1234567") == "since 2019 <PHONE>"
    assert redact_pii("555-123-4567 030 1234567") == "<PHONE> <PHONE>"
    numbers = " ".join(str(number) for number in range(20_000))
    assert redact_pii(numbers) == numbers


def test_cards_are_grouped_as_on_cards() -> None:
    for card in ("4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "3782 822463 10005"):
        assert redact_pii(f"card {card}.") == "card <CARD>."
