"""What the word filter adds to each event of a stream: CPU, with a list of 20,000 words.

    python packages/gateway/benchmarks/word_filter.py [--words N] [--seconds S]

Prints microseconds of CPU for each event of about 24 characters, beside the same loop without the filter: clean text,
text full of near misses (beginnings of words that end otherwise), text with masked words; English and Chinese. The last
line is JSON.
"""

import argparse
import json
import random
import time
from collections.abc import Callable

import orjson

from deepseek_gateway.guard.entries import Entry, Level, Match, Rule
from deepseek_gateway.guard.matcher import Matcher
from deepseek_gateway.guard.stage import WordStage

HAN = [chr(point) for point in range(0x4E00, 0x5600)]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CHARS_PER_EVENT = 24
NUM_EVENTS = 2000


def make_list(random_: random.Random, size: int) -> list[Entry]:
    """Half Chinese words of two to six characters, half English words and phrases of five to twenty letters."""
    entries: list[Entry] = []
    for number in range(size):
        level = Level.MASK if number % 2 else Level.BLOCK
        if number % 4 < 2:
            entries.append(Entry("".join(random_.choices(HAN, k=random_.randint(2, 6))), level))
        else:
            word = "".join(random_.choices(LETTERS, k=random_.randint(5, 9)))
            more = " " + "".join(random_.choices(LETTERS, k=random_.randint(4, 9))) if number % 8 == 2 else ""
            entries.append(Entry(word + more, level, match=Match.WORD))
    return entries


def texts(random_: random.Random, entries: list[Entry]) -> dict[str, list[str]]:
    """Streams of each kind, cut into events."""
    english = [entry.pattern for entry in entries if entry.pattern.isascii()]
    chinese = [entry.pattern for entry in entries if not entry.pattern.isascii()]
    masked = [entry.pattern for entry in entries if entry.level is Level.MASK]
    common = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "and",
        "says",
        "it",
        "was",
        "fine",
        "to",
    ]
    length = CHARS_PER_EVENT * NUM_EVENTS

    def stream(piece: Callable[[], str]) -> list[str]:
        out = ""
        while len(out) < length:
            out += piece()
        return [out[at : at + CHARS_PER_EVENT] for at in range(0, length, CHARS_PER_EVENT)]

    return {
        "clean, English": stream(lambda: random_.choice(common) + " "),
        "clean, Chinese": stream(lambda: "".join(chr(random_.randint(0x6000, 0x7000)) for _ in range(8)) + "，"),
        "near misses, English": stream(lambda: random_.choice(english)[: random_.randint(2, 4)] + "- "),
        "near misses, Chinese": stream(lambda: random_.choice(chinese)[:1] + "，"),
        "a masked word in each tenth event": stream(
            lambda: " ".join(random_.choices(common, k=50)) + " " + random_.choice(masked) + " "
        ),
    }


def frames_of(pieces: list[str]) -> list[bytes]:
    """Chat events of the engine."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = ({"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in pieces)
    return [b"data: " + orjson.dumps({**head, "choices": [event]}) + b"\n\n" for event in events]


def measure(run: Callable[[], None], seconds: float) -> float:
    """Microseconds of CPU of one event: the best of many rounds."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best / NUM_EVENTS * 1e6


def main() -> None:
    """Compile a list, then measure each kind of text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each kind of text")
    parsed = parser.parse_args()
    random_ = random.Random(1)
    entries = make_list(random_, parsed.words)
    start = time.perf_counter()
    matcher = Matcher([Rule(f"l@1#{number}", entry, entry.level) for number, entry in enumerate(entries, 1)])
    compile_ms = (time.perf_counter() - start) * 1000
    print(f"{parsed.words} words compiled in {compile_ms:.0f} ms")
    results: dict[str, float] = {}
    for name, pieces in texts(random_, entries).items():
        frames = frames_of(pieces)

        def without(frames: list[bytes] = frames) -> None:
            b"".join(list(frames))

        def filtered(frames: list[bytes] = frames) -> None:
            stage = WordStage(matcher, lambda *_: None)
            b"".join([stage.pass_on(frame) for frame in frames])

        added = measure(filtered, parsed.seconds) - measure(without, parsed.seconds)
        results[name] = round(added, 2)
        print(f"{name:36} {added:6.2f} us an event")
    print(
        json.dumps({"benchmark": "word_filter", "words": parsed.words, "compile_ms": round(compile_ms), "us": results})
    )


if __name__ == "__main__":
    main()
