"""Personal data by its form: what is found is told masked, and where, so that it can be looked at and taken out.

Checksums, plans of numbers and the context decide in doubt: a form without any, such as ten plain digits, may be
anything and does not count. What has no form of its own, such as names and addresses of homes, is not found.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

_IBAN_LENGTHS = (  # registry of ISO 13616
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18"
    " FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IR26 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20"
    " LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24"
    " SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)
_CARDS = re.compile(  # digits by issuer: the lengths that it gives
    r"4\d{12}(\d{3}){0,2}|(2[2-7]|35|5[0-9]|6\d)\d{14}|3[47]\d{13}|3(0[0-5]|[68]\d)\d{11}|6\d{16,18}"
)
_FILES = re.compile(r"\.(png|jpe?g|gif|svg|webp|css|js|py|html?)$", re.IGNORECASE)
_DATE = re.compile(r"(?<!\d)(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d\d))(?!\d)")
_SEQUENCE = "01234567890123456789"


class _Form(NamedTuple):
    pattern: re.Pattern[str]
    is_one: Callable[[str, str], bool]  # of what was found and the text around it
    mask: Callable[[str], str]


def personal(texts: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
    """What looks personal in each text: kind -> (index of the text, masked form), in the order of the texts.

    The kinds: e-mail addresses; IBANs by their checksum (ISO 7064); card numbers by their issuer and Luhn's; US social
    security numbers; public IP addresses; phone numbers with a country code, with a 0 before the area code, and of
    North America's form. Digits of any script are read. A number that is one thing is not another as well.
    """
    found: dict[str, list[tuple[int, str]]] = {kind: [] for kind in _FORMS}
    for i, text in enumerate(texts):
        read = text.translate(_READ)
        for kind, form in _FORMS.items():
            if kind == "phone":
                read = _DATE.sub(_blank, read)

            def take(match: re.Match[str], kind: str = kind, form: _Form = form, index: int = i) -> str:
                around = match.string[max(0, match.start() - 12) : match.start()]
                if not form.is_one(match[0], around):
                    return match[0]
                found[kind].append((index, form.mask(match[0].strip())))
                return _blank(match)

            read = form.pattern.sub(take, read)
    return found


class _Readings(dict[int, str]):
    """Each character as the patterns read it: ASCII digits, dashes and spaces, and nothing that only turns the text."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Nd":
            read = str(unicodedata.decimal(character))
        elif category == "Pd" or code == 0x2212:
            read = "-"
        elif category == "Zs":
            read = " "
        else:
            read = "" if category == "Cf" else {"＋": "+", "＠": "@"}.get(character, character)
        self[code] = read
        return read


_READ = _Readings()


def _blank(match: re.Match[str]) -> str:
    return "\n" * len(match[0])


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _first(letters: int) -> Callable[[str], str]:
    return lambda text: f"{text[:letters]}…"


def _mask_email(text: str) -> str:
    return f"{text[0]}…@…"


def _is_email(text: str, around: str) -> bool:
    return not _FILES.search(text) and len(text) <= 254


def _is_iban(text: str, around: str) -> bool:
    letters = text.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])) % 97 == 1


def _iban_pattern() -> re.Pattern[str]:
    lengths = [(code[:2], int(code[2:]) - 4) for code in _IBAN_LENGTHS.split()]
    each = "|".join(rf"{country}\d\d(?: ?[A-Z0-9]){{{rest}}}" for country, rest in lengths)
    return re.compile(rf"(?<![A-Za-z0-9])(?:{each})(?![A-Za-z0-9])")


def _is_card(text: str, around: str) -> bool:
    digits = _digits(text)
    if not _CARDS.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


def _is_ip(text: str, around: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6:
        return address.is_global and address in ipaddress.ip_network("2000::/3")
    # 1.2.3.4 is as likely the number of a chapter, and so is what a version is called.
    several = any(len(part) > 1 for part in text.split("."))
    return address.is_global and several and not re.search(r"(?i)v(er(sion|\.)?)?[ .:]*$", around)


def _is_phone(text: str, around: str) -> bool:
    digits = _digits(text)
    groups = re.findall(r"\d+", text)
    if text.startswith(("+", "(+")):
        return 8 <= len(digits) <= 15
    if len(groups) > 1 and re.search(r"\d[ -]$", around):
        return False  # the end of a longer number in groups
    if text.startswith("00"):
        return 10 <= len(digits) <= 17
    if digits.startswith("0"):  # the area code, then the number
        pairs = len(groups) > 2 and all(len(group) == 2 for group in groups)
        return (
            9 <= len(digits) <= 12
            and (not pairs or len(groups) == 5)
            and digits not in _SEQUENCE
            and "isbn" not in around.lower()
        )
    return True


_SUBDOMAINS = r"(?:\.[\w-]{1,63}){0,8}"
_LOCAL = r"\(?0[1-9]\d{0,4}\)?/\d{5,8}(?!\d)|\(?0[1-9]\d{0,10}\)?(?:[ \-.]?\(?\d{2,}\)?){0,5}"
_AMERICAN = r"(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-. ]\d{4}"
_ABROAD = r"\(?\+[1-9]\d{0,3}\)?(?:[ \-./]{0,2}\(?\d+\)?)+|00[1-9]\d{0,3}(?:[ \-./]?\d{2,})+"
_CHINESE = r"1[3-9]\d[- ]\d{4}[- ]\d{4}"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"

_FORMS = {
    "email": _Form(
        re.compile(rf"(?<![\w.+%-])[^\W_][\w.+%-]{{0,63}}@[^\W_][\w-]{{0,62}}{_SUBDOMAINS}\.[^\W\d_]{{2,63}}"),
        _is_email,
        _mask_email,
    ),
    "iban": _Form(_iban_pattern(), _is_iban, _first(2)),
    "card": _Form(
        re.compile(
            r"(?<![\d.,+-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{4,5})(?![\d-]|[.,]\d)"
        ),
        _is_card,
        _first(1),
    ),
    "ssn": _Form(
        re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])"), lambda *_: True, _first(0)
    ),
    "ip": _Form(
        re.compile(
            rf"(?<![\w.:/-])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w-]|\.\d)|(?<![\w:.])(?=[\da-f]*:)[\da-f:]{{6,39}}(?![\w:])",
            re.IGNORECASE,
        ),
        _is_ip,
        _first(2),
    ),
    "phone": _Form(
        re.compile(rf"(?<![\w.,+/$£€=#-])(?:{_ABROAD}|{_AMERICAN}|{_LOCAL}|{_CHINESE})(?!\d|[.,-]\d)"),
        _is_phone,
        _first(3),
    ),
}
KINDS = tuple(_FORMS)
