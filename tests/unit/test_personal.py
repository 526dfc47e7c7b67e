"""Personal data is detected, and stand-ins have its shape."""

import json
from collections import Counter

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phonenumbers import PhoneMetadata, PhoneNumberDesc, PhoneNumberMatcher

from draftloop.dataset.personal import Mask, described, find, phones, strings

EMAIL = "zhang.san+a@mail.example.cn"
PHONE = "13812345678"
CARD = "4111 1111 1111 1111"
PERSON = "11010519491231002X"
ACCOUNT = "DE89 3704 0044 0532 0130 00"
PIECES = st.sampled_from([EMAIL, PHONE, CARD, PERSON, ACCOUNT, PHONE[:6], PHONE[6:], "+86", "ext. 12"])


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (f"邮箱{EMAIL},谢谢", ["email"]),
        (f"电话{PHONE}。", ["phone"]),
        ("call +1 650-253-0000 now", ["phone"]),
        (f"卡号 {CARD}", ["id"]),
        (f"身份证{PERSON}", ["id"]),
        (f"IBAN {ACCOUNT}.", ["id"]),
        (f"{PHONE}或{EMAIL}", ["phone", "email"]),
        ("订单号 20260102030405, 共3件, 199.00元, 2026-01-02", []),
        ("卡号 4111 1111 1111 1112", []),  # its check digit is wrong
    ],
)
def test_personal_data_is_detected(text: str, kinds: list[str]) -> None:
    assert [datum.kind for datum in find(text, "CN")] == kinds


def test_the_country_decides_about_numbers_without_a_country_code() -> None:
    assert not find("call (650) 253-0000", "CN")
    assert [datum.kind for datum in find("call (650) 253-0000", "US")] == ["phone"]


@given(st.lists(st.text("0123456789 +-./()[]x,;aB@.中\t", max_size=24) | PIECES, max_size=4))
def test_texts_are_described_together_as_each_by_itself(texts: list[str]) -> None:
    kinds = Counter(datum.kind for text in texts for datum in find(text, "CN"))
    assert described(texts, "CN") == ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


def test_no_valid_number_is_shorter_than_the_fast_check() -> None:
    for code, regions in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items():
        for region in regions:
            about = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
            kinds = [] if about is None else vars(about).values()
            for kind in (kind for kind in kinds if isinstance(kind, PhoneNumberDesc)):
                own = [length for length in kind.possible_length if length > 0]
                assert min(own, default=9) >= 6 - len(str(code))


@given(
    st.text("0123456789٣３ +＋-./()[]x（）ー、a张", max_size=24)
    | st.sampled_from(
        [
            "+43 1234",
            "0043-1234",
            "+290 8999",
            "1 2 3 4",
            "+683 4000",
            "010-6552 9988",
            "0431234",
            "86 1234567",
        ]
    ),
    st.sampled_from(["CN", "US", "DE", "AT", "SH", "NU", "WS", "XX"]),
)
def test_the_fast_check_misses_no_telephone_number(text: str, region: str) -> None:
    assert list(phones(text, region)) == [(one.start, one.end) for one in PhoneNumberMatcher(text, region)]


def test_a_stand_in_is_the_same_everywhere_and_has_the_same_shape() -> None:
    part = {"text": f"{EMAIL} {PHONE} {CARD} {EMAIL}", "value": [EMAIL, {"card": CARD}], "n": 3}
    masked = Mask(part, "CN")(part)
    email = masked["value"][0]
    assert masked["text"].count(email) == 2
    assert email.endswith("@example.com")
    card = masked["value"][1]["card"]
    assert [c.isdigit() for c in card] == [c.isdigit() for c in CARD]
    assert card in masked["text"]
    assert len(masked["text"].split()[1]) == len(PHONE)
    assert masked["n"] == 3
    assert not any(secret in json.dumps(masked) for secret in (EMAIL, PHONE, CARD))


@given(st.lists(st.sampled_from([EMAIL, PHONE, CARD, PERSON, "张三 ", "，", "x@y", "7"]), max_size=6))
def test_masking_hides_exactly_the_detected_data(parts: list[str]) -> None:
    text = " ".join(parts)
    masked = Mask(text, "CN")(text)
    for datum in find(text, "CN"):
        assert text[datum.start : datum.end] not in masked
    if not find(text, "CN"):
        assert masked == text


def test_personal_data_is_counted_in_words_without_being_quoted() -> None:
    assert described([f"{EMAIL} {PHONE}", EMAIL], "CN") == "2 x email, 1 x phone"
    assert described(["nothing"], "CN") == ""
    assert list(strings({"a": ["b", {"c": "d"}], "e": 1})) == ["b", "d"]
