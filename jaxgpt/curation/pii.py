"""Personal data that has a form: e-mail and IP addresses, and numbers of cards, accounts, persons and phones.

Each is found by a pattern and, where its kind has one, held against its checksum, and gives way to another of its kind
that belongs to nobody. Names and postal addresses have no form and stay. All patterns take linear time.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator

from jaxgpt.curation.document import Document, Measure

KINDS = ("email", "ip", "iban", "card", "ssn", "phone")  # in the order in which they are replaced

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Replacements:
    """What personal data gives way to. E-mail and IPv4 are FineWeb's; the others are reserved for examples and tests.

    Attributes:
      email, ipv4, ipv6, iban, card, ssn, phone: one or several; none of them is replaced itself.
    """

    email: tuple[str, ...] = ("email@example.com", "firstname.lastname@example.org")
    ipv4: tuple[str, ...] = ("22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11",
                             "18.104.22.168")  # they answered no ping when FineWeb's authors drew them
    ipv6: tuple[str, ...] = ("2001:db8::1", "2001:db8::2")  # RFC 3849
    iban: tuple[str, ...] = ("DE89370400440532013000", "GB29NWBK60161331926819")  # examples of the IBAN registry
    card: tuple[str, ...] = ("4111111111111111", "5555555555554444")  # test numbers of payment services
    ssn: tuple[str, ...] = ("987-65-4320", "987-65-4329")  # reserved for advertisements
    phone: tuple[str, ...] = ("202-555-0143", "212-555-0167")  # 555-01xx is reserved for fiction

    def __post_init__(self):
        for field in dataclasses.fields(self):
            chosen = getattr(self, field.name)
            if not isinstance(chosen, tuple) or not chosen:
                raise ValueError(f"{field.name}: must be at least one text in a tuple, as in ('XXX',), not {chosen!r}")


@dataclasses.dataclass(frozen=True)
class ReplacePII:
    """Replaces personal data in a text.

      email  as FineWeb: what RFC 5322 allows without quotes, at a name with a dot or an IPv4 address
      ip     as FineWeb: public IPv4 addresses; also IPv6 ones (2000::/3, where all public ones are)
      iban   of a known country and its length, with the checksum (mod 97)
      card   payment cards: prefixes and lengths of the large networks, grouped as printed, with the checksum (Luhn)
      ssn    US social security numbers 123-45-6789 that can have been issued
      phone  +, country and number; North American ones also without

    FineWeb takes its replacements in turn, through all documents that a process sees. Here the same address gives way
    to the same replacement everywhere, chosen by its hash, and a replacement that is met again stays.

    FineWeb also replaces four of five numbers between dots and the ends of longer ones; they are versions and sections,
    so they stay. Four numbers from 0 to 255, such as in Chrome/120.0.0.0, cannot be told from an address: they go,
    unless a letter stands right before them, as in v1.2.3.4.

    `scores` of the document tell how many were replaced, under "pii" by kind.

    Source: Penedo et al., "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (2024);
    datatrove's pipeline/formatters/pii.py.

    Attributes:
      name: in reports and overrides.
      email, ip, iban, card, ssn, phone: what is replaced.
      replacements: by what.

    >>> from jaxgpt.curation.document import document
    >>> ReplacePII()(document("Ask tea@kettle.co.uk or 8.8.8.8.", "web")).text
    'Ask firstname.lastname@example.org or 126.96.36.199.'
    """

    name: str = "pii"
    email: bool = True
    ip: bool = True
    iban: bool = False
    card: bool = False
    ssn: bool = False
    phone: bool = False
    replacements: Replacements = Replacements()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """None: what it counts, it counts while it replaces."""
        return ()

    def __call__(self, document: Document) -> Document:
        """The document without personal data."""
        kinds = [kind for kind in KINDS if getattr(self, kind)]
        text, counts = replace_pii(document.text, kinds, self.replacements)
        edited = document.with_text(text)
        return dataclasses.replace(edited, scores={**edited.scores, "pii": counts})


def replace_pii(text: str, kinds: Collection[str] = ("email", "ip"),
                replacements: Replacements = Replacements()) -> tuple[str, dict[str, int]]:
    """A text without personal data of some kinds, and how many of each there were.

    Args:
      text: any.
      kinds: of KINDS.
      replacements: what is put instead.

    Raises:
      ValueError: there is no such kind.

    >>> replace_pii("Call +44 20 7946 0958, pay to GB82 WEST 1234 5698 7654 32.", ("iban", "phone"))
    ('Call 202-555-0143, pay to GB29NWBK60161331926819.', {'iban': 1, 'phone': 1})
    """
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"kinds: there is no '{unknown[0]}'; there are {', '.join(KINDS)}")
    counts = {}
    for kind in KINDS:
        if kind in kinds:
            counts[kind] = 0
            for field, find in FINDERS[kind].items():
                text, count = _replace(text, find(text), getattr(replacements, field))
                counts[kind] += count
    return text, counts


def _replace(text: str, spans: Iterator[Span], choices: tuple[str, ...]) -> tuple[str, int]:
    """The text with one of the choices in each of the spans, but for those that hold one already."""
    pieces, end, count = [], 0, 0
    for start, stop in spans:
        found = text[start:stop]
        if found not in choices:
            digest = hashlib.blake2b(found.lower().encode("utf-8"), digest_size=8).digest()
            pieces += [text[end:start], choices[int.from_bytes(digest, "big") % len(choices)]]
            end, count = stop, count + 1
    return ("".join(pieces) + text[end:], count) if count else (text, 0)


# --- e-mail ----------------------------------------------------------------------------------------------------------

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+"
_LOCAL = re.compile(rf"{_ATOM}++(?:\.{_ATOM}++)*+")  # the same backwards
_FIRST = re.compile(rf"\b{_ATOM}")
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})++|\[(?:[0-9]{{1,3}}\.){{3}}[0-9]{{1,3}}\]")


def find_emails(text: str) -> Iterator[Span]:
    """Where e-mail addresses are.

    From each @ to the right and to the left, each character once: a pattern that begins with the local part would try
    every word of a long run without an @ as its beginning.

    >>> list(find_emails("to <tea@kettle.co.uk>"))
    [(4, 20)]
    """
    left, at = 0, text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL.match(text[left:at][::-1]) if domain else None
        first = _FIRST.search(text, at - local.end(), at) if local else None
        left = at + 1
        if first:
            yield first.start(), domain.end()
            left = domain.end()
        at = text.find("@", left)


# --- IP addresses ----------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![A-Za-z0-9_])(?<!\d\.)(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?:::?[0-9A-Fa-f]{1,4}){1,7}(?:::)?(?!\w|:\w|\.\d)", re.ASCII)


def is_public(address: str) -> bool:
    """Whether an IP address is one that machines far away have.

    >>> is_public("8.8.8.8"), is_public("192.168.0.1"), is_public("2001:db8::1"), is_public("1.2.3.444")
    (True, False, False, False)
    """
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


# --- numbers with a checksum or a plan -------------------------------------------------------------------------------

IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30""".split()}

_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?= ?[A-Z0-9])")
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{12,19}"
    r"|(?<!\d{4} )\d{4}(?:([ -])\d{4}\1\d{4}\1\d{4}|([ -])\d{6}\2\d{4,5})(?! \d{4}\b))(?!\w|[.-]\d)",
    re.ASCII)
_CARD_NETWORK = re.compile(r"""
    4(?:\d{12}|\d{15}|\d{18})                                                          # Visa
    |(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}                  # Mastercard
    |3[47]\d{13}                                                                       # American Express
    |(?:6011|64[4-9]\d|65\d\d)\d{12}                                                   # Discover
    |(?:352[89]|35[3-8]\d)\d{12}                                                       # JCB
    |(?:30[0-5]|3095|36\d|3[89]\d)\d{11}                                               # Diners Club
    |62\d{14,17}                                                                       # UnionPay
    |(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}                                # Maestro""", re.VERBOSE)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])", re.ASCII)
_AREA = r"[2-9](?!11)\d\d"
_NORTH_AMERICA = re.compile(rf"{_AREA}(?!55501){_AREA}\d{{4}}")
_PHONE = re.compile(
    rf"(?:(?<![\w+.])\+[1-9](?:[ .()-]{{0,2}}\d){{7,14}}(?![ .()-]{{0,2}}\d)"
    rf"|(?<![\w.+-])(?:(?:00)?1[ .-])?(?:\({_AREA}\) ?|{_AREA}[.-])(?!555.01){_AREA}[ .-]\d{{4}})"
    r"(?: ?x\d{1,6})?(?![\w-])", re.ASCII)


def find_ibans(text: str) -> Iterator[Span]:
    """Where IBANs are.

    >>> list(find_ibans("to GB82 WEST 1234 5698 7654 32 AND SO ON"))
    [(3, 30)]
    """
    end = 0
    for start in _IBAN_START.finditer(text):
        length = IBAN_LENGTHS.get(start.group()[:2])
        rest = _iban_rest(length).match(text, start.end()) if length and start.start() >= end else None
        if rest and _is_iban(text[start.start():rest.end()]):
            end = rest.end()
            yield start.start(), end


@functools.cache
def _iban_rest(length: int) -> re.Pattern:
    return re.compile(rf"(?: ?[A-Z0-9]){{{length - 4}}}(?![A-Za-z0-9])")


def _is_iban(text: str) -> bool:
    """What remains of it, letters counted from A = 10, is 1 modulo 97. Source: ISO 13616, ISO 7064 (mod 97-10)."""
    text = text.replace(" ", "")
    return int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return bool(_CARD_NETWORK.fullmatch(digits)) and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the sum of the digits, every second one from the right doubled, ends in 0.

    A doubled digit counts as the sum of its own digits: 2 * 7 as 1 + 4. Source: ISO/IEC 7812-1, annex B.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _is_phone(text: str) -> bool:
    """Numbers that begin with +1 must be North American."""
    digits = re.sub(r"\D", "", text.partition("x")[0])
    return not text.startswith("+1") or bool(_NORTH_AMERICA.fullmatch(digits, 1))


def _by(pattern: re.Pattern, hint: str, valid: Callable[[str], bool] = bool) -> Callable[[str], Iterator[Span]]:
    """A finder; most texts lack even the `hint`, which is looked for in a tenth of the time."""
    has_hint = re.compile(hint, re.ASCII).search
    return lambda text: (found.span() for found in (pattern.finditer(text) if has_hint(text) else ())
                         if valid(found.group()))


FINDERS: dict[str, dict[str, Callable[[str], Iterator[Span]]]] = {
    "email": {"email": find_emails},
    "ip": {"ipv4": _by(_IPV4, r"\d\.\d+\.\d", is_public), "ipv6": _by(_IPV6, r":[0-9A-Fa-f]*:", is_public)},
    "iban": {"iban": find_ibans},
    "card": {"card": _by(_CARD, r"\d{12}|\d{4}[ -]\d{4}", _is_card)},
    "ssn": {"ssn": _by(_SSN, r"-\d\d-\d")},
    "phone": {"phone": _by(_PHONE, r"[ .-]\d{4}|\+\d", _is_phone)},
}
