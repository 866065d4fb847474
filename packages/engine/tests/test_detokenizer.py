import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models

from deepseek_engine.detokenizer import Detokenizer
from deepseek_engine.stop_strings import StopStrings
from deepseek_engine.tokenizer import Tokenizer, load_tokenizer

SMOLLM2 = load_tokenizer("smollm2")
BYTE_TOKENS = [SMOLLM2.encode(chr(0x4E00 + n))[-1] for n in range(256)] + list(range(17, 300))


def _sentencepiece_like() -> Tokenizer:
    """Metaspace words with byte fallback, as Llama 2's: not byte-level."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "b", "▁", "中", "▁the"]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    return Tokenizer(backend, eos_token_ids=(2,))


SENTENCEPIECE = _sentencepiece_like()

any_ids = st.lists(st.one_of(st.integers(0, 49151), st.sampled_from(BYTE_TOKENS)), max_size=60)


def _cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    parts: list[list[int]] = []
    while ids:
        size = max(1, sizes[len(parts) % len(sizes)]) if sizes else 1
        parts.append(ids[:size])
        ids = ids[size:]
    return parts


@settings(max_examples=300)
@given(any_ids, st.lists(st.integers(1, 5), max_size=4))
def test_the_stream_joined_is_the_text_of_all_tokens(ids: list[int], sizes: list[int]):
    detokenizer = Detokenizer(SMOLLM2.text_stream())
    pieces = [detokenizer.push(part).text for part in _cut(ids, sizes)]
    assert "".join(pieces) + detokenizer.finish().text == SMOLLM2.decode(ids)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x1FFFF, exclude_categories=["Cs"]), max_size=60))
def test_of_whole_text_nothing_is_ever_broken_and_only_an_incomplete_character_is_held(text: str):
    detokenizer = Detokenizer(SMOLLM2.text_stream())
    raw, given_out = b"", ""
    for token_id in SMOLLM2.encode(text):
        raw += b"" if token_id < 17 else SMOLLM2.token_bytes(token_id)
        given_out += detokenizer.push([token_id]).text
        assert given_out == raw.decode("utf-8", "ignore")
    assert detokenizer.finish().text == ""


@settings(max_examples=200)
@given(st.lists(st.integers(0, SENTENCEPIECE.vocab_size - 1).filter(lambda i: not 131 <= i < 259), max_size=40))
def test_other_vocabularies_stream_to_the_same_text(ids: list[int]):
    # Without bytes over 0x7F, which byte fallback may rewrite in hindsight.
    detokenizer = Detokenizer(SENTENCEPIECE.text_stream())
    pieces = [detokenizer.push([token_id]).text for token_id in ids]
    assert "".join(pieces) + detokenizer.finish().text == SENTENCEPIECE.decode(ids)


@given(st.text(alphabet="ab 中é😀", max_size=30))
def test_characters_made_of_fallback_bytes_arrive_whole(text: str):
    ids = [byte + 3 for byte in text.encode()]
    detokenizer = Detokenizer(SENTENCEPIECE.text_stream())
    pieces = [detokenizer.push([token_id]).text for token_id in ids]
    assert "".join(pieces) + detokenizer.finish().text == SENTENCEPIECE.decode(ids)
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("tokenizer", [SMOLLM2, SENTENCEPIECE])
@pytest.mark.parametrize("kind", ["broken", "special"])
def test_an_answer_of_nothing_but_broken_or_special_tokens_costs_linear_time(tokenizer: Tokenizer, kind: str):
    lead_byte = SMOLLM2.encode("中")[0] if tokenizer is SMOLLM2 else 0xE4 + 3
    token_id = lead_byte if kind == "broken" else 2

    def seconds(count: int) -> float:
        detokenizer = Detokenizer(tokenizer.text_stream())
        start = time.process_time()
        for _ in range(count):
            detokenizer.push([token_id])
        return time.process_time() - start

    seconds(100)
    assert seconds(4000) < 20 * max(seconds(1000), 0.0005)


def test_special_tokens_and_unknown_ids_add_nothing():
    ids = [*SMOLLM2.encode("one"), 2, 10**6, *SMOLLM2.encode(" two")]
    detokenizer = Detokenizer(SMOLLM2.text_stream())
    assert detokenizer.push(ids).text == "one two"


def test_a_stop_string_across_tokens_ends_the_text_before_it_and_surplus_tokens_do_not_count():
    ids = SMOLLM2.encode("The end. STOP and more")
    detokenizer = Detokenizer(SMOLLM2.text_stream(), ("STOP",))
    delta = detokenizer.push(ids)
    assert delta.text == "The end. "
    assert delta.stop == "STOP"
    assert SMOLLM2.decode(ids[: delta.num_tokens]) == "The end. STOP"


def test_only_a_live_prefix_of_a_stop_string_is_held_back():
    stops = StopStrings(("</think>", "##"))
    assert stops.push("a < b").text == "a < b"
    assert stops.push(" </thi").text == " "
    assert stops.push("s").text == "</this"
    assert stops.push("x#").text == "x"
    assert stops.finish() == "#"


def _reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


@settings(max_examples=400)
@given(
    st.text(alphabet="abc", max_size=40),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(1, 6), max_size=5),
)
def test_the_first_stop_string_is_found_however_the_text_is_cut(text: str, stops: list[str], sizes: list[int]):
    matcher = StopStrings(tuple(stops))
    out, matched, at = "", None, 0
    for index in range(len(text)):
        size = sizes[index % len(sizes)] if sizes else 1
        scan = matcher.push(text[at : at + size])
        at += size
        out += scan.text
        matched = scan.matched
        if matched is not None:
            break
        held = text[len(out) : at]
        assert held == "" or any(stop.startswith(held) for stop in stops), "more than a live prefix is held back"
    if matched is None:
        out += matcher.finish()
    assert (out, matched) == _reference(text, stops)
