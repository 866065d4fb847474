"""One answer's tokens to its text: incremental, and ending at a stop string."""

from collections.abc import Sequence

import msgspec

from deepseek_engine.stop_strings import StopStrings
from deepseek_engine.text_stream import TextStream


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """What some tokens added to an answer.

    Attributes:
        text: new text that is safe to send.
        num_tokens: how many of the tokens belong to the answer; those after a stop string do not.
        stop: the stop string that ended the answer, if one did.
    """

    text: str
    num_tokens: int
    stop: str | None = None


class Detokenizer:
    """Text of one answer.

    What it gives out, joined, is the decoded text of the answer's tokens, cut before the first stop string. Characters
    that are incomplete and text that may still become a stop string are held back, nothing else.
    """

    def __init__(self, stream: TextStream, stop: tuple[str, ...] = ()) -> None:
        self._stream = stream
        self._stops = StopStrings(stop)
        self._has_stops = bool(stop)

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Take new tokens; not to be called after a stop string was found."""
        if not self._has_stops:
            return TextDelta("".join(map(self._stream.push, token_ids)), len(token_ids))
        pieces: list[str] = []
        for count, token_id in enumerate(token_ids, start=1):
            scan = self._stops.push(self._stream.push(token_id))
            pieces.append(scan.text)
            if scan.matched is not None:
                return TextDelta("".join(pieces), count, scan.matched)
        return TextDelta("".join(pieces), len(token_ids))

    def finish(self) -> TextDelta:
        """What was held back, when the answer ends without a stop string."""
        scan = self._stops.push(self._stream.finish())
        rest = "" if scan.matched is not None else self._stops.finish()
        return TextDelta(scan.text + rest, 0, scan.matched)
