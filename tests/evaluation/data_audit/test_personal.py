"""Personal data: tables of what is and of what only looks like it, masks, places."""

import pytest

from limbeck.evaluation.data_audit.personal import KINDS, personal


def kinds(text):
    return [kind for kind, found in personal([text]).items() for _ in found]


IS = {
    "email": [
        "write to jane.doe+news@mail.example.org, please",
        "<a@b.co>",
        "ایمیل من sara@example.ir است",
        "用户@例子.公司",
        "MAILTO:Max.Muster@Firma.de.",
    ],
    "phone": [
        "+98 912 345 6789",
        "+۹۸ ۹۱۲ ۳۴۵ ۶۷۸۹",  # Persian digits
        "٠٥٠١٢٣٤٥٦٧",  # Arabic digits
        "تلفن: ۰۹۱۲۳۴۵۶۷۸۹.",
        "۰۲۱-۸۸۷۷۶۶۵۵",
        "call 09061701461 now",
        "08452810075over18's",
        "(+44) 20 7946 0958",
        "+44 (0)20 7946 0958",
        "0049 30 901820",
        "06 12 34 56 78",
        "030/9018200",
        "(415) 555-2671",
        "1-800-555-0199",
        "415.555.2671",
        "手机 138-1234-5678",
        "07946746291/mobile",
        "0800 145 4742",
        "+4915112345678",  # whose digits pass for a card
        "+1\u2011415\u2011555\u20112671",  # hyphens that do not break
    ],
    "card": [
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "3782 822463 10005",
        "۶۰۳۷ ۹۹۱۱ ۲۳۴۵ ۶۷۸۶",  # an Iranian bank's
        "6011000990139424",
    ],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "شبا: IR820540102680020817909002",
        "IR۸۲ ۰۵۴۰ ۱۰۲۶ ۸۰۰۲ ۰۸۱۷ ۹۰۹۰ ۰۲",
        "NO93 8601 1117 947 AND MORE",
    ],
    "ssn": ["my number is 123-45-6789."],
    "ip": ["from 93.184.216.34", "host 2606:2800:220:1:248:1893:25c8:1946", "[2a00:1450:4001:81b::200e]:443"],
}

IS_NOT = [
    "2023-10-12 and 12/10/2023 and 12.10.2023, 01-02-2003 12:30",
    "01.02.2003 14.30",
    "۱۴۰۲/۰۷/۲۰ و ۱۳۹۹-۰۱-۰۱",
    "in 1999, 2000 and 2024-2025",
    "a population of 1234567890 or 83,200,000 or 1 234 567 890",
    "£1,000 cash, $12,345,678.90, 0.123456789, 3.14159265358979",
    "ISBN 0306406152, 0-306-40615-2, ISBN: 0 306 40615 2",
    "the key 0123456789",
    "4111 1111 1111 1112",  # Luhn
    "0000 0000 0000 0000",
    "1234567890123456",
    "1234567890123452",  # by Luhn a card's, and no issuer's
    "4111111111111111111111",  # too long
    "DE89 3704 0044 0532 0130 01",  # checksum
    "XX89 3704 0044 0532 0130 00",
    "127.0.0.1, 10.0.0.1, 192.168.1.10, 0.0.0.0",
    "version 10.15.23.4 and v12.11.10.9 and chapter 1.2.3.4, 300.200.100.10, 1.22.33.44.55",
    "std::vector<int>, a::b, ::, 12:30:45, fe80::1, ::1, 2001:db8::1, Genesis 12:30",
    "000-12-3456, 666-12-3456, 912-34-5678, 123-00-4567, 123-45-67890",
    "at@home, image@2x.png, @user, a@b, foo @ bar.com",
    f"{'a' * 70}@b.co",
    "300 400 5000 and 200 300 4000",
    "2 + 12345678 and 3+4567890123",
    "000123456789, article 12-0123456789",
    "01 02 03 04 05 06 07",
    "Season 2004-05, 1996-97, 555-1234, 87121",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in IS.items() for text in texts])
def test_what_is_personal_is_found_once_as_its_kind(kind, text):
    assert set(kinds(text)) == {kind}
    assert len(kinds(text)) == 1


@pytest.mark.parametrize("text", IS_NOT)
def test_what_only_looks_personal_is_not_found(text):
    assert kinds(text) == []


def test_what_is_one_thing_is_not_another_as_well():
    assert kinds("09123456789@mail.com") == ["email"]


def test_each_is_told_with_its_text_and_masked():
    texts = ["nothing", "a.b@c.org or +98 912 345 6789", "4111111111111111 DE89370400440532013000", "۰۹۱۲۳۴۵۶۷۸۹"]
    found = personal(texts)
    assert found["email"] == [(1, "a…@…")]
    assert found["phone"] == [(1, "+98…"), (3, "091…")]
    assert found["card"] == [(2, "4…")] and found["iban"] == [(2, "DE…")]
    assert tuple(found) == KINDS and not found["ssn"]


@pytest.mark.parametrize("text", [text for texts in IS.values() for text in texts])
def test_no_mask_tells_more_than_three_characters(text):
    for found in personal([text]).values():
        for _, shown in found:
            assert len(shown.replace("…", "").replace("@", "")) <= 3


def test_hostile_text_takes_no_long_time():
    personal(["1 " * 20000, "a." * 20000, "0" * 50000, "+1" * 20000, ":" * 50000, "DE12 " * 10000, "\ud800@\ud800.co"])
