"""Personal data is masked where it is, and nothing else is touched."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_gateway.guard.pii import find_pii, is_luhn, is_resident_id, mask_json, mask_pii

MASKED = {
    "write to jane.doe+x@mail.example.co.uk, please": "write to [email], please",
    "联系li@example.cn谢谢": "联系[email]谢谢",
    "手机13812345678，或+86 138-1234-5678": "手机[phone]，或[phone]",
    "電話１３８１２３４５６７８": "電話[phone]",
    "call +1 (555) 123-4567 or (212) 555-0147, 010-62345678": "call [phone] or [phone], [phone]",
    "+44 20 7946 0958": "[phone]",
    "身份证11010519491231002X。": "身份证[resident_id]。",
    "card 4111 1111 1111 1111 and 5500-0000-0000-0004.": "card [card] and [card].",
    "4111111111111111": "[card]",
    "IBAN DE89 3704 0044 0532 0130 00 and GB29NWBK60161331926819": "IBAN [iban] and [iban]",
    "from 192.168.10.1, 2001:db8::ff00:42:8329 and ::ffff:10.0.0.1.": "from [ip], [ip] and [ip].",
}
LEFT_ALONE = [
    *("11010519491231002", "110105194912310021", "4111 1111 1111 1112", "0000 0000 0000 0000", "12:30:45", "std::vec"),
    *(
        "a::b",
        "1.2.3",
        "999.1.1.1",
        "1.2.3.4.5",
        "user@host",
        "@name",
        "12345678",
        "2026-11-26",
        "v1.2.3.4b",
        "price 138",
    ),
    *("DE89 3704 0044 0532 0130 01", "XX89370400440532013000", "13812345678901", "3.14159265358979"),
]


@pytest.mark.parametrize("text", MASKED)
def test_personal_data_is_masked_by_its_kind(text: str) -> None:
    assert mask_pii(text) == MASKED[text]


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert mask_pii(text) is text


def test_kinds_can_be_chosen() -> None:
    assert mask_pii("a@b.de 192.168.0.1", ("ip",)) == "a@b.de [ip]"


def test_json_is_masked_in_its_strings() -> None:
    value = {"a@b.de": ["a@b.de", 13812345678, None, {"x": "13812345678"}]}
    assert mask_json(value) == {"a@b.de": ["[email]", 13812345678, None, {"x": "[phone]"}]}


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="0123456789 -", min_size=13, max_size=19), st.text(max_size=20))
def test_masking_keeps_all_other_text_and_is_done_after_once(number: str, rest: str) -> None:
    text = f"{rest} {number} {rest}"
    found = find_pii(text)
    assert all(one.end <= two.start for one, two in pairwise(found))
    masked = mask_pii(text)
    assert mask_pii(masked) == masked
    kept, end = "", 0
    for one in found:
        kept, end = kept + text[end : one.start] + f"[{one.kind}]", one.end
    assert masked == kept + text[end:]


@given(st.from_regex(r"[1-9][0-9]{14}", fullmatch=True))
def test_one_last_digit_in_ten_is_right(digits: str) -> None:
    assert sum(is_luhn(digits + last) for last in "0123456789") == 1
    assert sum(is_resident_id(digits + "00" + last) for last in "0123456789X") == 1


def test_long_hostile_text_is_done_in_linear_time() -> None:
    for text in ("a" * 100_000, "1 " * 50_000, "a." * 50_000 + "@", ":" * 100_000, "+1-" * 30_000, "DE89 " * 20_000):
        assert find_pii(text) is not None
