"""The hash chain: any one change of any past entry is found, at the right place."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_gateway.audit.chain import (
    GENESIS,
    Draft,
    Entry,
    Head,
    Verifier,
    is_sealed,
    json_text,
    link,
    seal,
    seal_key,
)
from deepseek_gateway.audit.mask import mask, mask_text


def chain(number: int) -> list[Entry]:
    drafts = [
        Draft("cli:root", "key.create", f"k{at}", None, '{"name":"日本"}', None, "p1", "") for at in range(number)
    ]
    return link(Head(), 1795392000.123456, drafts)


def head_of(entries: list[Entry]) -> Head:
    return Head(entries[-1].sequence, entries[-1].hash) if entries else Head()


def test_a_sound_chain_has_no_fault_and_grows_from_its_head() -> None:
    entries = chain(5)
    more = link(head_of(entries), 1795392001.5, [Draft("gateway", "config.reload", "")])
    both = [*entries, *more]
    verifier = Verifier(head_of(both))
    assert verifier.first_fault(both) is None
    assert verifier.count == 6
    assert entries[0].previous_hash == GENESIS
    assert Verifier(Head()).first_fault([]) is None


def test_the_hash_is_what_the_documentation_says() -> None:
    entry = chain(2)[1]
    fields = [getattr(entry, name) for name in Entry.__slots__][:-1]
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    assert sha256(text.encode()).hexdigest() == entry.hash


FIELDS = ("at", "actor", "action", "subject", "before", "after", "request_id", "policy_version", "list_version", "hash")


@given(st.integers(0, 7), st.sampled_from(FIELDS), st.text(min_size=1, max_size=5))
def test_a_changed_field_is_found_in_its_entry(at: int, name: str, text: str) -> None:
    entries = chain(8)
    value = 1.5 if name == "at" else f"*{text}"
    entries[at] = replace(entries[at], **{name: value})
    fault = Verifier(head_of(chain(8))).first_fault(entries)
    assert fault is not None
    assert (fault.sequence, fault.kind) == (at + 1, "changed")


@given(st.integers(0, 7), st.integers(1, 3))
def test_removed_entries_are_named(at: int, number: int) -> None:
    entries = chain(8)
    del entries[at : at + number]
    fault = Verifier(head_of(chain(8))).first_fault(entries)
    assert fault is not None
    assert fault.sequence == at + 1
    assert fault.kind == ("cut" if at + number >= 8 else "removed")


@given(st.integers(0, 7))
def test_an_inserted_entry_that_pushes_the_others_on_is_found(at: int) -> None:
    entries = chain(8)
    forged = link(Head(at, entries[at - 1].hash if at else GENESIS), 1.0, [Draft("cli:eve", "key.create", "k")])
    entries = [*entries[:at], *forged, *(replace(entry, sequence=entry.sequence + 1) for entry in entries[at:])]
    fault = Verifier(head_of(chain(8))).first_fault(entries)
    assert fault is not None
    assert (fault.sequence, fault.kind) == (at + 2, "inserted")


def test_a_removed_entry_whose_gap_was_closed_is_found() -> None:
    entries = chain(8)
    entries = [*entries[:3], *(replace(entry, sequence=entry.sequence - 1) for entry in entries[4:])]
    fault = Verifier(head_of(chain(8))).first_fault(entries)
    assert fault is not None
    assert (fault.sequence, fault.kind) == (4, "removed")


def test_an_entry_put_into_a_gap_of_the_sequence_or_after_the_head_is_inserted() -> None:
    entries = chain(3)
    appended = [*entries, *link(head_of(entries), 2.0, [Draft("cli:eve", "key.create", "k")])]
    fault = Verifier(head_of(entries)).first_fault(appended)
    assert fault is not None
    assert (fault.sequence, fault.kind) == (4, "inserted")
    squeezed = [entries[0], replace(entries[1], subject="other"), entries[2]]
    squeezed[1] = replace(squeezed[1], hash=squeezed[1].computed_hash())
    fault = Verifier(head_of(entries)).first_fault(squeezed)
    assert fault is not None
    assert (fault.sequence, fault.kind) == (3, "rewritten")


def test_a_whole_rewritten_chain_is_found_by_a_head_kept_elsewhere_and_by_its_seal() -> None:
    entries, key = chain(5), seal_key(b"pepper")
    known = {3: entries[2].hash}
    forged = link(Head(), 1.0, [Draft("cli:root", "key.create", "other") for _ in range(5)])
    assert Verifier(head_of(forged)).first_fault(forged) is None
    fault = Verifier(head_of(forged), known).first_fault(forged)
    assert fault is not None
    assert (fault.sequence, fault.kind) == (3, "rewritten")
    sealed = replace(head_of(entries), seal=seal(key, 5, entries[-1].hash))
    assert is_sealed(key, sealed)
    assert not is_sealed(key, replace(head_of(forged), seal=sealed.seal))
    assert not is_sealed(seal_key(b"other"), sealed)


def test_a_chain_that_ends_before_a_known_head_was_cut() -> None:
    entries = chain(5)
    fault = Verifier(head_of(entries[:3]), {5: entries[4].hash}).first_fault(entries[:3])
    assert fault is not None
    assert (fault.sequence, fault.kind) == (4, "cut")


def test_a_value_that_is_too_long_is_kept_as_size_and_digest() -> None:
    text = json_text({"words": "x" * 100_000})
    assert text is not None
    assert json.loads(text).keys() == {"bytes", "sha256", "too_long"}
    assert json_text(None) is None


KEY = "dsk_abcdefghijkl_" + "s" * 43 + "_1A2b3C"


def test_secrets_are_masked_by_name_and_by_look() -> None:
    given_value = {
        "secret_hash": "aa11",
        "upstream_key": None,
        "password": "p",
        "tokens_per_minute": 5,
        "nested": [{"pepper": "x", "name": f"made with {KEY} yesterday"}],
        "url": "postgresql://me:hunter2@db/x",
        "raw": b"12345",
        "enabled": True,
    }
    assert mask(given_value) == {
        "secret_hash": "…",
        "upstream_key": None,
        "password": "…",
        "tokens_per_minute": 5,
        "nested": [{"pepper": "…", "name": "made with dsk_abcdefghijkl_… yesterday"}],
        "url": "postgresql://me:…@db/x",
        "raw": "<5 bytes>",
        "enabled": True,
    }
    assert mask_text("Authorization: Bearer abcdefgh12345") == "Authorization: Bearer …"


@settings(max_examples=50)
@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner)))
def test_masking_twice_is_masking_once(value: object) -> None:
    assert mask(mask(value)) == mask(value)


@pytest.mark.parametrize("text", ["plain", "http://host:80/path", "a:b@c", "sk-short"])
def test_plain_texts_stay(text: str) -> None:
    assert mask_text(text) == text
