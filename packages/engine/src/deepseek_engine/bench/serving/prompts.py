"""What is asked: random words, random token ids, or conversations of a file."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from deepseek_engine.bench.serving.lengths import Lengths

_TEXT: Final = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name president team minute idea body information back parent
face others level office door health person art war history party result change morning reason research girl guy
moment air teacher force education
"""
WORDS: Final = tuple(_TEXT.split())
# Each is one token, with the space before it, in the vocabularies of Llama, Qwen, DeepSeek, GPT-2 and SmolLM2.


class DatasetError(Exception):
    """A file of prompts cannot be used."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's content.

    Attributes:
        content: a text, or token ids (for `/v1/completions` only).
        max_tokens: of the answer.
    """

    content: str | list[int]
    max_tokens: int


def word_prompts(
    count: int, prompt_tokens: Lengths, output_tokens: Lengths, rng: random.Random, num_shared_words: int = 0
) -> list[Prompt]:
    """Prompts of random words: about a token each; no two alike beyond the words that all begin with."""
    shared = rng.choices(WORDS, k=num_shared_words)
    return [
        Prompt(" ".join(shared + rng.choices(WORDS, k=prompt_tokens.draw(rng))), output_tokens.draw(rng))
        for _ in range(count)
    ]


def token_prompts(
    count: int,
    prompt_tokens: Lengths,
    output_tokens: Lengths,
    rng: random.Random,
    vocab_size: int,
    num_shared_tokens: int = 0,
) -> list[Prompt]:
    """Prompts of random token ids below `vocab_size`: lengths are exact."""
    ids = range(vocab_size)
    shared = rng.choices(ids, k=num_shared_tokens)
    return [Prompt(shared + rng.choices(ids, k=prompt_tokens.draw(rng)), output_tokens.draw(rng)) for _ in range(count)]


def file_prompts(path: Path, count: int, output_tokens: Lengths | None, rng: random.Random) -> list[Prompt]:
    """Prompts of a file, in random order, from the start again if it has too few.

    Args:
        path: JSON lines, or one JSON list, of ShareGPT's shape (`{"conversations": [{"from": …, "value": …}, …]}`: the
            first two turns are prompt and answer), or `{"prompt": …, "max_tokens": …}`, or
            `{"messages": [{"role": "user", "content": …}]}`.
        count: how many.
        output_tokens: length of the answers; None takes the entry's own: `max_tokens`, or a token for four characters
            of ShareGPT's answer.
        rng: order, and lengths.

    Raises:
        DatasetError: it cannot be read, or has no usable entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries: Iterable[Any] = (
            json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(line) for line in text.splitlines() if line]
        )
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    usable = [prompt for entry in entries if (prompt := _read_entry(entry, output_tokens, rng)) is not None]
    if not usable:
        raise DatasetError(f"{path} has no entry with conversations, messages or prompt")
    rng.shuffle(usable)
    return [usable[index % len(usable)] for index in range(count)]


def _read_entry(entry: Any, output_tokens: Lengths | None, rng: random.Random) -> Prompt | None:
    if not isinstance(entry, dict):
        return None
    fields = cast("dict[str, Any]", entry)
    text, answer_tokens = fields.get("prompt"), fields.get("max_tokens", 128)
    if isinstance(turns := fields.get("conversations"), list) and len(cast("list[Any]", turns)) >= 2:
        text, answer = (str(turn.get("value") or "") for turn in cast("list[dict[str, Any]]", turns)[:2])
        answer_tokens = max(len(answer) // 4, 1)
    elif isinstance(messages := fields.get("messages"), list):
        asked = [each for each in cast("list[dict[str, Any]]", messages) if each.get("role") == "user"]
        text = asked[0].get("content") if asked else None
    if not isinstance(text, str) or not text or not isinstance(answer_tokens, int) or answer_tokens < 1:
        return None
    return Prompt(text, answer_tokens if output_tokens is None else output_tokens.draw(rng))
