"""What the fake engine does with one request: read from the body's `fake` field."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Script:
    """One request's course. Without a `fake` field: `tokens` words, as fast as they can be sent.

    Attributes:
        tokens: words in the answer; the request's max_tokens, at most 8, if not given.
        prompt_tokens: what the prompt counts as; its words if not given.
        cached_tokens: how many of these the prefix cache has.
        delay_s: seconds before each word.
        gated: wait for `FakeEngine.allow` before each word.
        queued: wait for `FakeEngine.allow` before the request begins; until then it uses nothing.
        status: answer with this error instead.
        cut_after: break the connection after so many words; an answer that is not streamed breaks within its body.
        error_after: send an error event after so many words, and end.
        word_bytes: size of a word.
        pieces: the words themselves, instead of made ones.
        deaf: know no abort (the endpoint answers 404), as servers of other makers.
        deltas: what an answer of chat says, one delta a token, instead of words.
        finish: the finish_reason of an answer that is complete.
        foreign: put usage first in a chunk and only into the last, as servers of other makers do.
    """

    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    delay_s: float = 0.0
    gated: bool = False
    queued: bool = False
    status: int | None = None
    cut_after: int | None = None
    error_after: int | None = None
    word_bytes: int = 5
    pieces: tuple[str, ...] = ()
    deaf: bool = False
    foreign: bool = False
    deltas: tuple[dict[str, Any], ...] = ()
    finish: str | None = None

    @classmethod
    def read(cls, body: dict[str, Any], default_delay_s: float) -> "Script":
        """The script in a request's body.

        Raises:
            ValueError: it has a field that no script has.
        """
        given: dict[str, Any] = body.get("fake") or {}
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"fake: unknown fields {', '.join(sorted(unknown))}")
        fields_given: dict[str, Any] = {"delay_s": default_delay_s, **given}
        return cls(**fields_given)
