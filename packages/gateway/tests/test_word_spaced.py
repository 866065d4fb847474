"""The second look finds letters with something between them, wherever a text is cut, and few coincidences."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_gateway.guard.entries import Entry, Level, Match, Rule, WordListError
from deepseek_gateway.guard.matcher import Matcher
from deepseek_gateway.guard.policy import LoadedList, Snapshot
from deepseek_gateway.guard.stream import TextFilter


def rules_of(*entries: Entry) -> list[Rule]:
    return [Rule(f"list@1#{number}", entry, entry.level) for number, entry in enumerate(entries)]


def spaced(*patterns: str) -> list[Entry]:
    return [Entry(pattern, Level.REVIEW, match=Match.SPACED) for pattern in patterns]


def found(rules: list[Rule], *pieces: str, is_json: bool = False) -> list[tuple[str, int, int, str]]:
    text_filter = TextFilter(Matcher(rules), is_json=is_json)
    for piece in pieces:
        text_filter.feed(piece)
    text_filter.finish()
    return sorted((hit.rule.id, hit.start, hit.end, hit.text) for hit in text_filter.hits)


@pytest.mark.parametrize(
    "text",
    [
        "b a d",
        "b-a-d",
        "B.A.D",
        "b4a4d",
        "b*ad",
        "so b_a_d!",
        "(b\u200b a d)",
        "ｂ　ａ　ｄ",
        "b - a - d",
        "bad",
        "a b-a-d",
    ],
)
def test_letters_with_something_between_are_found(text: str) -> None:
    (hit,) = found(rules_of(*spaced("bad")), text)
    assert (hit[3][0] + hit[3][-1]).lower() in {"bd", "ｂｄ"}


@pytest.mark.parametrize("text", ["坏*词", "坏 词", "这是坏...词吗", "壞－詞", "坏1词", "坏词"])
def test_chinese_needs_no_edges_of_words(text: str) -> None:
    assert len(found(rules_of(*spaced("坏词")), text)) == 1


@pytest.mark.parametrize(
    "text",
    ["ba d", "b ad", "lab adds", "club-adviser", "rub a dub", "b ---- a ---- d", "abba-dabba", "b a dog", "grab a d"],
)
def test_words_that_run_together_are_no_hit(text: str) -> None:
    assert found(rules_of(*spaced("bad")), text) == []


def test_a_phrase_that_is_allowed_cancels_it() -> None:
    rules = rules_of(*spaced("bad"), Entry("not b-a-d here", Level.ALLOW))
    assert found(rules, "not b a d here") == []
    assert len(found(rules, "not b a d there")) == 1


def test_nothing_is_held_back_for_it() -> None:
    text_filter = TextFilter(Matcher(rules_of(*spaced("bad"))))
    assert [text_filter.feed(piece) for piece in ("b", " a", " ", "d")] == ["b", " a", " ", "d"]
    assert text_filter.finish() == ""
    assert [(hit.start, hit.end, hit.text) for hit in text_filter.hits] == [(0, 5, "b a d")]


def test_letters_behind_json_escapes_are_found() -> None:
    assert len(found(rules_of(*spaced("bad")), r"\u0062-\u00", r"61-d", is_json=True)) == 1


letters = st.text("abd -4.\u0301é坏词", max_size=24)
some_rules = st.lists(
    st.one_of(
        st.builds(
            Entry, st.sampled_from(["bad", "dab", "abba", "坏词"]), st.just(Level.REVIEW), match=st.just(Match.SPACED)
        ),
        st.builds(Entry, st.sampled_from(["a bad", "bad dab", "坏词a"]), st.just(Level.ALLOW)),
        st.builds(Entry, st.sampled_from(["da", "b-a", "bab"]), st.sampled_from([Level.BLOCK, Level.MASK])),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(some_rules, letters, st.lists(st.integers(0, 24), max_size=6))
def test_any_split_finds_what_the_whole_text_has(entries: list[Entry], text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    rules = rules_of(*entries)
    assert found(rules, *pieces) == found(rules, text) == found(rules, *text)


@pytest.mark.parametrize("between", ["\u0301" * 70, "\u200b" * 70, "-" * 70])
def test_a_flood_between_letters_ends_a_word_wherever_it_is_cut(between: str) -> None:
    rules, text = rules_of(*spaced("bad")), f"b-a-d{between}b-a{between}-d"
    assert len(found(rules, text)) == 1
    assert found(rules, text) == found(rules, *text)


def test_a_long_text_is_looked_at_piece_by_piece() -> None:
    text = "a clean line of text. " * 5000 + "b-a-d" + " 1" * 5000 + "b\u0301" + "\u0301" * 5000 + "-a-d"
    text_filter = TextFilter(Matcher(rules_of(*spaced("bad"))))
    for at in range(0, len(text), 7):
        text_filter.feed(text[at : at + 7])
        assert len(text_filter._spaced._letters) < 20
        assert len(text_filter._spaced._text) < 200
    text_filter.finish()
    assert [hit.text for hit in text_filter.hits] == ["b-a-d"]


@pytest.mark.parametrize(
    "entry",
    [
        Entry("bad", Level.BLOCK, match=Match.SPACED),
        Entry("bad", Level.MASK, match=Match.SPACED),
        Entry("ab", Level.REVIEW, match=Match.SPACED),
        Entry("坏", Level.REVIEW, match=Match.SPACED),
        Entry("2027", Level.REVIEW, match=Match.SPACED),
    ],
)
def test_what_would_find_too_much_is_refused(entry: Entry) -> None:
    with pytest.raises(WordListError, match="spaced"):
        entry.check()


def test_no_policy_makes_it_block() -> None:
    lists = {"l": LoadedList("l", 1, (*spaced("bad"), Entry("worse", Level.REVIEW)))}
    snapshot = Snapshot(lists, {("all", ""): {"l": ("block", "closed")}}, frozenset(), 0.0)
    policy = snapshot.compile(snapshot.effective("k", None, None))
    assert policy.inward is not None
    assert [rule.level for rule in policy.inward.rules] == [Level.REVIEW, Level.BLOCK]
