"""Personal data: by table, beside datatrove's patterns, on generated sentences, and on texts made to take long."""

import json
import pickle
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.curation.document import document
from jaxgpt.curation.language import LanguageIdentification
from jaxgpt.curation.pii import IBAN_LENGTHS, KINDS, ReplacePII, Replacements, luhn, replace_pii

MARKS = Replacements(**{name: (f"<{name}>",) for name in ("email", "ipv4", "ipv6", "iban", "card", "ssn", "phone")})


def marked(text, *kinds):
    return replace_pii(text, kinds or KINDS, MARKS)[0]


@pytest.mark.parametrize("kind, text, expected", [
    ("email", "a.b+c@d-e.co.uk, (x@y.org).", "<email>, (<email>)."),
    ("email", "x@[10.0.0.1] x@10.0.0.1", "<email> <email>"),
    ("email", "a@b a@b. @b.c a@-b.c a@b-.c", "a@b a@b. @b.c a@-b.c a@b-.c"),
    ("email", "é@b.cd née.x@b.cd a..b@c.de", "é@b.cd née.<email> a..<email>"),
    ("ip", "8.8.8.8, 8.8.8.8:53 8.8.8.8/24 (8.8.8.8).", "<ipv4>, <ipv4>:53 <ipv4>/24 (<ipv4>)."),
    ("ip", "10.0.0.1 192.168.1.1 127.0.0.1 0.0.0.0 8.8.8.256 8.8.8.08", None),
    ("ip", "1.2.3.4.5 v1.2.3.4 11.2.3.4.5 1.2.3.4a 1.2.3 1234.1.1.1 1.1.1.1234", None),
    ("ip", "Chrome/120.0.0.0 and 地址8.8.8.8。", "Chrome/<ipv4> and 地址<ipv4>。"),
    ("ip", "[2001:4860:4860::8888]:53, 2a00:1450:4001:82b::200e. 2600:1::", "[<ipv6>]:53, <ipv6>. <ipv6>"),
    ("ip", "2001:db8::1 fe80::1 ::1 fc00::1 12:30:45 std::vector a::b 2001:12 2001:0:0:0:0:0:0:0:1 2001::1::2", None),
    ("iban", "DE89370400440532013000 GB82 WEST 1234 5698 7654 32, FR1420041010050500013M02606",
     "<iban> <iban>, <iban>"),
    ("iban", "DE89370400440532013001 XX89370400440532013000 DE8937040044053201300 xDE89370400440532013000", None),
    ("iban", "NO9386011117947 NL91ABNA0417164300 AND SO", "<iban> <iban> AND SO"),
    ("card", "4012888888881881 12/25 4012-8888-8888-1881, 4012 8888 8888 1881 12/25, 3782 822463 10005",
     "<card> 12/25 <card>, <card> 12/25, <card>"),
    ("card", "4012888888881882 1012888888881889 4012 8888-8888 1881 4012 8888 8888 1881 4012 x4012888888881881", None),
    ("card", "1.4012888888881881 4012888888881881.0 1111 4012 8888 8888 1881 12345678901234567890", None),
    ("card", "5105105105105100 2223003122003222 6011000990139424 3530111333300000 30569309025904 6200000000000005",
     "<card> <card> <card> <card> <card> <card>"),
    ("ssn", "His is 536-90-4399.", "His is <ssn>."),
    ("ssn", "000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000 123 45 6789 123456789 1-123-45-6789", None),
    ("phone", "+44 20 7946 0958, +49(0)30-123456 +1 (415) 555-2671.", "<phone>, <phone> <phone>."),
    ("phone", "415-555-2671 (415) 555 2671 1-415-555-2671 415.555.2671x12 001-415-555-2671",
     "<phone> <phone> <phone> <phone> <phone>"),
    ("phone", "115-555-2671 415-155-2671 411-555-2671 415-911-2671 +1 115 555 2671 +1 415 555 26 415 555 2671", None),
    ("phone", "2021-222-3333 2020-10-12 10-12-2020 1914-1918 +12 3.1415926535 415-555-26711 a+b 12+1234567", None),
])
def test_what_is_replaced(kind, text, expected):
    assert marked(text, kind) == (text if expected is None else expected)


def test_one_kind_does_not_see_another():
    text = "tea@kettle.co.uk 8.8.8.8 2600::1 DE89370400440532013000 4012888888881881 536-90-4399 +44 20 7946 0958"
    assert replace_pii(text, (), MARKS) == (text, {})
    assert replace_pii(text, KINDS, MARKS) == (
        "<email> <ipv4> <ipv6> <iban> <card> <ssn> <phone>",
        {"email": 1, "ip": 2, "iban": 1, "card": 1, "ssn": 1, "phone": 1})
    words = {"email": "<email>", "ip": "<ipv4> <ipv6>", "iban": "<iban>", "card": "<card>", "ssn": "<ssn>",
             "phone": "<phone>"}
    for kind, mark in words.items():
        assert set(marked(text, kind).split()) - set(text.split()) == set(mark.split())


def test_the_step():
    step = ReplacePII()
    page = document("Ask tea@kettle.co.uk, tea@kettle.co.uk or 4012888888881881.", "web")
    page = page.with_scores(LanguageIdentification())
    edited = step(page)
    address = edited.text.split()[1].rstrip(",")
    assert edited.text == f"Ask {address}, {address} or 4012888888881881."
    assert address in Replacements().email and edited.id == page.id
    assert edited.scores == {"pii": {"email": 2, "ip": 0}}  # the language was of the old text
    assert step(edited).text == edited.text and step(edited).scores == {"pii": {"email": 0, "ip": 0}}
    clean = document("Nothing to see here.", "web").with_scores(LanguageIdentification())
    assert step(clean).text is clean.text and {"pii", "language"} == set(step(clean).scores)
    assert pickle.loads(pickle.dumps(step))(page) == edited
    assert ReplacePII(email=False, card=True)(page).text.startswith("Ask tea@kettle.co.uk, tea@kettle.co.uk or 4")


def test_the_same_address_gives_way_to_the_same_replacement():
    """Whatever else is in the text; and each replacement has its turn."""
    chosen = {replace_pii(f"u{i}@kettle.co.uk")[0] for i in range(40)}
    assert chosen == set(Replacements().email)
    assert {replace_pii(f"93.184.0.{i}")[0] for i in range(100)} == set(Replacements().ipv4)
    assert replace_pii("A@kettle.co.uk")[0] == replace_pii("a@KETTLE.co.uk")[0]
    alone = replace_pii("u7@kettle.co.uk")[0]
    assert replace_pii("1@b.cd 2@b.cd u7@kettle.co.uk")[0].split()[2] == alone


def test_replacements_stay():
    every = " ".join(" ".join(chosen) for chosen in vars(Replacements()).values())
    assert replace_pii(every, KINDS) == (every, dict.fromkeys(KINDS, 0))


def test_replacements_are_what_they_stand_for():
    assert all(luhn(number) for number in Replacements().card)
    assert len(IBAN_LENGTHS) > 80 and all(15 <= length <= 33 for length in IBAN_LENGTHS.values())
    for field, kind in (("email", "email"), ("ipv4", "ip"), ("iban", "iban"), ("card", "card")):
        assert all(marked(text, kind) == f"<{field}>" for text in getattr(Replacements(), field))


@pytest.mark.parametrize("make", [
    lambda: Replacements(email="x@y.zz"), lambda: Replacements(ssn=()), lambda: replace_pii("", ("name",))])
def test_settings_that_cannot_be(make):
    with pytest.raises(ValueError, match="must be at least one text in a tuple|no 'name'; there are email, ip"):
        make()


def test_as_datatrove_does(data_folder):
    """Its own cases."""
    cases = json.loads((Path(data_folder) / "pii" / "datatrove_pii_cases.json").read_text())
    marks = Replacements(email=("EMAIL",), ipv4=("IP",))
    for kind in ("email", "ip"):
        name = f"{kind.upper()}_TEST"
        text, expected = cases[f"{name}_INPUT"], cases[f"{name}_OUTPUT"]
        assert replace_pii(text, (kind,), marks)[0] == expected != text


MAIL = ["a", "b.", "@", "@x.com", ".", "-", "_", "+", "あ", "”", "1", " ", "..", "A1", "@a-b.co", "!", "@[1.2.3.4]", "é"]
ADDRESSES = ["8.8.8.8", "1.2", ".", "1", "255", " ", "-", ", ", "/24", ":80", "(", "a"]


def test_beside_datatrove():
    """E-mail: the same on any text. IPv4: what goes here goes there; what goes there only is part of more."""
    formatters = pytest.importorskip("datatrove.pipeline.formatters")
    theirs = formatters.PIIFormatter(email_replacement="<email>", ip_replacement="<ipv4>")
    rng, changed, more = random.Random(0), {"email": 0, "ip": 0}, 0
    for _ in range(20_000):
        text = "".join(rng.choices(MAIL, k=rng.randrange(3, 14)))
        expected = theirs.emails_replacer.replace(text)
        assert marked(text, "email") == expected, text
        changed["email"] += expected != text
        text = "".join(rng.choices(ADDRESSES, k=rng.randrange(1, 6)))
        ours, expected = marked(text, "ip"), theirs.ip_replacer.replace(text)
        if ours != expected:
            assert ours.count("<ipv4>") < expected.count("<ipv4>"), text
            more += 1
        changed["ip"] += ours != text
    assert changed["email"] > 5000 and changed["ip"] > 2000 and more > 1000


def test_generated_sentences(data_folder):
    """What is found of each kind, and nothing else is changed."""
    rows = json.loads((Path(data_folder) / "pii" / "presidio_generated_small.json").read_text())
    names = {"EMAIL_ADDRESS": "email", "IP_ADDRESS": "ip", "CREDIT_CARD": "card", "US_SSN": "ssn",
             "PHONE_NUMBER": "phone"}
    found, there, other = dict.fromkeys(names.values(), 0), dict.fromkeys(names.values(), 0), 0
    for row in rows:
        for entity, kind in names.items():
            text, counts = replace_pii(row["full_text"], (kind,))
            values = [span["entity_value"] for span in row["spans"] if span["entity_type"] == entity]
            hits = sum(value not in text for value in values)
            found[kind], there[kind], other = found[kind] + hits, there[kind] + len(values), other + counts[kind] - hits
    assert there == {"email": 2, "ip": 2, "card": 10, "ssn": 3, "phone": 10} and other == 0
    assert found == {**there, "phone": 4}  # the others are national numbers without a country, such as (96) 627-277


REPEATED = ["a", "a.", "a-", "@", "a@", "a@b", "a@b.", "a@b-", "@b.", "a+", "1", "1.", "1 ", "1-", "1.1.1.1 ", "@[1.",
            "2001:", "2001::", "::", "AA00", "GB00 ", "GB00 A ", "4111 ", "4111-", "+", "+1", "+1 ", "(202) ", "202-",
            "202-555-", "(", " ", ".", "\N{NO-BREAK SPACE}", "123-45-", "1x"]


@pytest.mark.parametrize("kind", KINDS)
def test_time_is_linear(kind):
    """Runs of 40,000: what took the square of their length would take minutes."""
    start = time.process_time()
    for piece in REPEATED:
        for text in (piece * 40_000, "+1" + piece * 40_000 + "@b.cd", "GB00" + piece * 10_000):
            assert replace_pii(text, (kind,))[1][kind] >= 0
    assert time.process_time() - start < 30


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from([
    "@", "a@b.cd", "8.8.8.8", "2600::1", "DE89370400440532013000", "4012888888881881", "536-90-4399", "+442079460958",
    "\ud800", "٣", "."])), max_size=8).map("".join))
def test_any_text(text):
    edited, counts = replace_pii(text, KINDS)
    assert (edited == text) == (not any(counts.values()))
    assert replace_pii(text, KINDS) == (edited, counts)
    if not any(sign in text for sign in "@0123456789"):
        assert edited == text
