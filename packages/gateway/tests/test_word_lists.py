"""Word lists as files, in the store, and as policies."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.errors import StoreConflictError
from deepseek_gateway.guard.entries import Direction, Entry, Level, Match, WordListError
from deepseek_gateway.guard.lists import demonstration, format_of, read_list, write_list
from deepseek_gateway.guard.policy import LoadedList, Snapshot, rule_place
from deepseek_gateway.guard.regex import MAX_LENGTH, Automaton, RegexError, parse
from deepseek_gateway.storage.store import Store
from deepseek_gateway.storage.words import PolicyRow, ReviewRow, digest_of

ENTRIES = [
    Entry("bad word", Level.BLOCK, "rude", Direction.OUT, Match.WORD, "en", 1.0, 2.5, "someone"),
    Entry("坏词", Level.MASK),
    Entry('with "quotes", and commas', Level.REVIEW),
    Entry("[a-z]{3}", Level.MASK, match=Match.REGEX),
    Entry("good", Level.ALLOW),
]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_files_come_back_as_they_were_written(form) -> None:
    assert read_list(write_list(ENTRIES, form), form) == ENTRIES


def test_a_text_file_is_a_pattern_a_line() -> None:
    assert read_list("\ufeff# comment\nbad\n\n bad \nworse\n", "text", Level.MASK) == [
        Entry("bad", Level.MASK),
        Entry("worse", Level.MASK),
    ]
    texts = ("pattern,level\nbad,mask", '{"pattern": "bad"}', "pattern, of words\nbad", "pattern", "")
    assert [format_of("-", text) for text in texts] == ["csv", "jsonl", "text", "csv", "text"]
    assert [format_of(name) for name in ("a.csv", "a.JSONL", "a.txt", "a")] == ["csv", "jsonl", "text", "text"]


def test_faults_are_told_with_their_lines_and_the_way_out() -> None:
    rows = ["pattern,level,match", "ok,block,substring", ",block,", "x,forbid,", "(,block,regex", "a*,block,regex"]
    with pytest.raises(WordListError) as fault:
        read_list("\n".join(rows), "csv")
    message = str(fault.value)
    assert "line 3: no pattern" in message
    assert "line 4: pattern 'x'" in message
    assert "block, mask, review, allow" in message
    assert "line 6" in message
    assert "{0,20}" in message
    for text, form in (("word\nx", "csv"), ("", "text"), ("{}", "jsonl"), ("[1]", "jsonl"), ("\u0301x", "text")):
        with pytest.raises(WordListError):
            read_list(text, form)  # pyright: ignore


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "a*",
            "a+",
            "a{2,}",
            "(a",
            "a)",
            "[",
            "[]",
            "[b-a]",
            "a{0}",
            "a{3,2}",
            "a?",
            "",
            "a{65}",
            "(?=a)",
            "(a{9}){9}",
        ),
        *("^a", "\\q", "a??", "[ﬁ]", "a|", "x{1,3}{2}", "(?<n>a)", "(" * 21 + "a" + ")" * 21, "{3}", "\\"),
    ],
)
def test_expressions_outside_the_safe_subset_are_refused(pattern: str) -> None:
    with pytest.raises(RegexError):
        parse(pattern)


def test_expressions_that_would_backtrack_take_linear_time() -> None:
    automaton = Automaton([parse("(?:a?){30}a{30}"), parse("(?:a|a|aa){1,30}b")])
    assert automaton.walk("a" * 60 + "c", 0)[0][:2] == [(0, 30), (0, 31)]
    assert MAX_LENGTH == 64


@given(st.text(alphabet="ab()[]{}|?,^-\\d123", max_size=12))
def test_any_expression_is_read_or_refused(pattern: str) -> None:
    try:
        part = parse(pattern)
    except RegexError:
        return
    assert 1 <= part.shortest() <= part.longest() <= MAX_LENGTH
    Automaton([part]).walk("ab12ba()", 0)


def test_the_demonstration_list_has_one_of_each_kind() -> None:
    assert {entry.level for entry in demonstration()} == set(Level)
    assert {entry.match for entry in demonstration()} == set(Match)


def test_versions_are_kept_and_activated(store: Store) -> None:
    words, now = store.words, time.time()
    stamp = words.stamp()
    first = words.add_version("demo", ENTRIES, note="first", by="cli:me", now=now)
    second = words.add_version("demo", ENTRIES[:1], note="", by="cli:me", now=now)
    assert (first.version, second.version, first.entries) == (1, 2, 5)
    assert words.entries("demo", 1) == ENTRIES
    assert first.sha256 == digest_of(words.entries("demo", 1)) != second.sha256
    assert words.versions("demo") == [second, first]
    assert words.lists()[0].active_version is None
    assert words.stamp() == stamp
    assert words.activate("demo", 1)
    assert words.lists()[0].active_version == 1
    assert words.stamp() == stamp + 1
    assert not words.activate("demo", 9)
    assert not words.activate("other", None)
    assert words.activate("demo", None)
    assert words.lists()[0].active_version is None


def test_policies_are_set_changed_and_dropped(store: Store) -> None:
    words = store.words
    row = PolicyRow("org", "o1", "demo", "mask", "closed")
    with pytest.raises(StoreConflictError):
        words.set_policy(row)
    words.add_version("demo", ENTRIES, note="", by="me", now=0.0)
    words.set_policy(row)
    words.set_policy(replace(row, level="off", on_failure="open"))
    assert words.policies() == [replace(row, level="off", on_failure="open")]
    assert words.drop_policy("org", "o1", "demo")
    assert not words.drop_policy("org", "o1", "demo")


def review(number: int, **more: object) -> ReviewRow:
    row = ReviewRow(
        *(f"rev-{number}", float(number), "req-1", "key", None, "out", "text", 0, "demo@1#1", "", "review", 0, 3, "ff")
    )
    return replace(row, **more)


def test_reviews_wait_are_decided_and_forgotten(store: Store) -> None:
    words = store.words
    words.add_reviews([review(number) for number in range(5)])
    words.add_reviews([review(1, field="never")])
    page = words.reviews("new", 2)
    assert [row.id for row in page] == ["rev-4", "rev-3"]
    assert [row.id for row in words.reviews("new", 9, (page[-1].created, page[-1].id))] == ["rev-2", "rev-1", "rev-0"]
    assert words.decide("rev-1", "dismissed", by="me", note="harmless", now=9.0)
    assert not words.decide("rev-9", "dismissed", by="me", note="", now=9.0)
    assert words.review("rev-1") == review(1, state="dismissed", decided=9.0, decided_by="me", note="harmless")
    assert words.count_reviews() == {"new": 4, "dismissed": 1}
    assert words.drop_reviews(3.0) == 3
    assert words.count_reviews() == {"new": 2}


def test_the_nearest_policy_counts() -> None:
    lists = {"a": LoadedList("a", 3, (Entry("x"),))}
    wishes = {
        ("all", ""): {"a": ("off", "closed")},
        ("org", "o"): {"a": ("mask", "closed")},
        ("model", "m"): {"a": ("review", "closed")},
        ("key", "k"): {"a": ("block", "open")},
    }
    snapshot = Snapshot(lists, wishes, frozenset(), 0.0)
    assert snapshot.effective("z", None, None) == ()
    assert snapshot.effective("z", "o", "z") == (("a", ("mask", "closed")),)
    assert snapshot.effective("z", "o", "m") == (("a", ("review", "closed")),)
    policy = snapshot.compile(snapshot.effective("k", "o", "m"))
    assert policy.fails_open
    assert policy.inward is not None
    assert [(rule.id, rule.level) for rule in policy.inward.rules] == [("a@3#1", Level.BLOCK)]
    assert rule_place("a@3#1") == ("a", 3, 1)
    with pytest.raises(WordListError):
        rule_place("a#1")


def test_policies_have_versions_that_follow_their_content() -> None:
    def version(entry_version: int, level: str) -> str:
        lists = {"a": LoadedList("a", entry_version, (Entry("x"),))}
        snapshot = Snapshot(lists, {("all", ""): {"a": (level, "closed")}}, frozenset(), 0.0)
        return snapshot.compile(snapshot.effective("", None, None)).version

    assert len({version(1, "listed"), version(2, "listed"), version(1, "mask")}) == 3
    assert version(1, "listed") == version(1, "listed")


def test_a_list_is_json_safe() -> None:
    assert json.loads(write_list(ENTRIES[:1], "jsonl"))["valid_until"] == "1970-01-01T00:00:02.500000+00:00"
