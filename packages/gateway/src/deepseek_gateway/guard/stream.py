"""Filter one text that comes in pieces, with the result that the whole text would have.

Only what may still become a hit is held back: the shortest end of the text that begins a pattern. What is decided, and
when, follows from the text alone, never from where it was cut:

- A candidate is a hit once the character after it is known (an accent would make it another letter, a letter another
  word) and no allow phrase around it can still complete.
- Of several blocking hits the one that ends first counts. The text up to its start is safe, and the last to go out.
- Masks replace each character by `*`; marks and hidden characters that belong to one go with it.
"""

import re

from deepseek_gateway.guard.entries import Level
from deepseek_gateway.guard.fold import OffsetMap, fold, is_mark, skeleton
from deepseek_gateway.guard.hits import MAX_HITS, Hit
from deepseek_gateway.guard.matcher import HOLDS, KINDS, Live, Matcher, Span
from deepseek_gateway.guard.spaced import SpacedText

MASK = "*"
PIECE = 16_384
"""Characters of a long text that are looked at in one go."""

_HEX2 = "[0-9a-fA-F]{2}"
_HIGH, _LOW = rf"\\u[dD][89abAB]{_HEX2}", rf"\\u[dD][c-fC-F]{_HEX2}"
_ALONE = r"(?=[^\\]|\\[^u]|\\u(?:[^dD]|[dD][^c-fC-F]))"  # no second half can follow
_ESCAPE = re.compile(rf"{_HIGH}{_LOW}|{_HIGH}{_ALONE}|\\u(?![dD][89abAB])[0-9a-fA-F]{{4}}|\\[^u]")
_OPEN_ESCAPE = re.compile(rf"(?:{_HIGH})?(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?\Z")
_SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class TextFilter:
    """One text. Feed it, then finish it.

    Args:
        matcher: the rules.
        is_json: the text is itself JSON (arguments of a tool call), so that letters may hide behind escapes.
    """

    def __init__(self, matcher: Matcher, *, is_json: bool = False) -> None:
        self._matcher = matcher
        self._is_json = is_json
        self._window: str = ""  # what is still looked at: held back, or sent and part of an open candidate
        self._looks = ""
        self._before = ""  # the folded character before the window
        self._base = 0  # characters before the window, in the text and in its folded form
        self._folded_base = 0
        self._masks: list[tuple[int, int]] = []
        self._seen: set[tuple[int, int, int]] = set()
        self._escapes: dict[int, str] = {}
        self._open_escape = ""
        self.sent = 0
        self.masked_to = 0
        self.hits: list[Hit] = []
        self.num_told = 0  # of the hits
        self.is_blocked = False
        self._spaced = None if matcher.spaced is None else SpacedText(matcher.spaced, self.hits)

    @property
    def received(self) -> int:
        """Characters that came, sent on or not."""
        return self._base + len(self._window)

    @property
    def is_holding(self) -> bool:
        """Whether something is held back."""
        return bool(self._open_escape) or self.sent < self.received

    @property
    def is_open(self) -> bool:
        """Whether the end of the text would still decide something, held back or not."""
        return bool(self._open_escape or self._window or (self._spaced is not None and self._spaced.is_open))

    def feed(self, text: str) -> str:
        """Take a piece; gives what may go on now, earlier pieces' rest first. The same object if it is all of it."""
        if self.is_blocked:
            return ""
        if self._is_json and (self._open_escape or "\\" in text):
            text = self._decode(text)
        if len(text) > PIECE:
            return "".join(self._take(text[at : at + PIECE]) for at in range(0, len(text), PIECE))
        return self._take(text)

    def finish(self) -> str:
        """What was held back: the text ends here, or goes on after something else."""
        if self.is_blocked:
            return ""
        rest = ""
        if self._window:
            live = self._matcher.live(self._window, self._looks, self._before)
            rest = self._advance(live, is_final=True)
        if self.is_blocked:
            return rest
        if self._spaced is not None:
            self._spaced.finish()
        self._open_escape, incomplete = "", self._open_escape
        return rest + incomplete

    def _take(self, text: str) -> str:
        if self.is_blocked:
            return ""
        looks = skeleton(text)
        if self._window and not looks:
            return self._hide(text)
        if self._window:
            text, looks = self._window + text, self._looks + looks
        live = self._matcher.live(text, looks, self._before)
        if self._matcher.has_any(looks):
            self._window, self._looks = text, looks
            return self._advance(live, is_final=False)
        return self._pass(text, looks, live)

    def _hide(self, text: str) -> str:
        """Take characters that show nothing: they decide nothing, so a flood of them costs no look at the window."""
        is_all_sent = self.sent == self.received
        self._window += text
        return self._send(self.received) if is_all_sent else ""

    def _pass(self, text: str, looks: str, live: Live) -> str:
        """Send on a window without a candidate, up to what may become one: the way that most text goes."""
        start, end = self.sent, self._base + _origin(text, looks, live.holds)[0]
        is_all = start == self._base and end == start + len(text)
        self._window, self._looks = text, looks
        if is_all and not self._masks and not self._escapes and self._spaced is None:
            self.sent, out = end, text
        else:
            out = self._send(end)
        self._forget(live.any)
        return out

    def _advance(self, live: Live, *, is_final: bool) -> str:
        """Decide what can be decided, and send on what nothing can change any more."""
        matcher, looks = self._matcher, self._looks
        folded = fold(self._window)
        size = len(folded)
        spans = matcher.candidates(folded, looks, self._before)
        hold, keep = size if is_final else live.holds, live.any
        if spans:
            offsets = OffsetMap(self._window)
            open_spans, blocking = self._decide(spans, folded, offsets, None if is_final else live)
            if blocking is not None:
                self.is_blocked = True
                safe = self._send(max(self._base + offsets.start(blocking.start), self.sent))
                if self._spaced is not None:
                    self._spaced.finish()
                return safe
            for span in open_spans:
                keep = min(keep, span.start)
                if KINDS[matcher.rules[span.rule].level] == HOLDS:
                    hold = min(hold, span.start)
        out = self._send(self._base + _origin(self._window, looks, hold)[0])
        self._forget(keep)
        return out

    def _decide(
        self, spans: list[Span], folded: str, offsets: OffsetMap, live: Live | None
    ) -> tuple[list[Span], Span | None]:
        """Note the hits; gives the candidates that more text must decide, and the hit that ends the text.

        `live` is None at the end of the text.
        """
        rules, last = self._matcher.rules, offsets.start(len(folded) - 1)
        allowed: list[Span] = []
        open_spans: list[Span] = []
        others: list[Span] = []
        is_known = {span: live is None or offsets.start(span.end - 1) < last for span in spans}
        for span in spans:
            if is_known[span] and not self._matcher.ends_well(span, folded[span.end : span.end + 1]):
                continue
            if rules[span.rule].level is not Level.ALLOW:
                others.append(span)
            else:
                (allowed if is_known[span] else open_spans).append(span)
        possible = list(open_spans)
        has_open = False
        for position, span in enumerate(others):
            if self._place(span) in self._seen:
                continue
            if any(phrase.start <= span.start and span.end <= phrase.end for phrase in allowed):
                self._seen.add(self._place(span))
                continue
            is_open = not is_known[span] or (live is not None and live.allows <= span.start)
            is_open = is_open or any(p.start <= span.start and span.end <= p.end for p in possible)
            is_block = rules[span.rule].level is Level.BLOCK
            if is_block and (is_open or has_open):
                return open_spans + others[position:], None  # what comes after must wait for this one
            if is_open:
                has_open = True
                open_spans.append(span)
                continue
            self._note(span, folded, offsets)
            if is_block:
                return [], span
        return open_spans, None

    def _note(self, span: Span, folded: str, offsets: OffsetMap) -> None:
        self._seen.add(self._place(span))
        rule = self._matcher.rules[span.rule]
        start, end = offsets.start(span.start), offsets.end(span.end)
        if rule.level is Level.MASK:
            self._masks.append((self._base + start, self._base + end))
        text = self._window[start:end]
        hit = Hit(rule, self._base + start, self._base + end, text, folded[span.start : span.end])
        if len(self.hits) < MAX_HITS:
            self.hits.append(hit)

    def _place(self, span: Span) -> tuple[int, int, int]:
        return span.rule, self._folded_base + span.start, self._folded_base + span.end

    def _send(self, end: int) -> str:
        """The text from what was sent up to `end`, masked."""
        start, self.sent = self.sent, max(end, self.sent)
        text = self._window[start - self._base : self.sent - self._base]
        if self._spaced is not None:
            self._spaced.feed(text)
        out = self._rendered(text, start)
        self._masks = [mask for mask in self._masks if mask[1] > self.sent]
        return out

    def _rendered(self, text: str, start: int) -> str:
        masks = [mask for mask in self._masks if mask[0] < start + len(text) and mask[1] > start]
        if not masks and not self._escapes:
            return text
        out: list[str] = []
        for position, char in enumerate(text, start):
            raw = self._escapes.pop(position, char)
            if any(first <= position < end for first, end in masks):
                self.masked_to = position + 1
                out.append(MASK if _is_base(char) else "")
            else:
                out.append(raw)
        return "".join(out)

    def _forget(self, keep: int) -> None:
        """Look no more at what cannot be part of a hit: all before a place of the folded window."""
        origin, at = _origin(self._window, self._looks, keep)
        if at:
            self._before = self._looks[at - 1]
        self._base += origin
        self._folded_base += at
        self._window, self._looks = self._window[origin:], self._looks[at:]
        if not self._window and self._seen:
            self._seen.clear()

    def _decode(self, text: str) -> str:
        """JSON string escapes as the characters they stand for, each remembered for when it is sent on."""
        text = self._open_escape + text
        at = self.received
        out: list[str] = []
        done = 0
        for match in _ESCAPE.finditer(text):
            out.append(text[done : match.start()])
            at += match.start() - done
            self._escapes[at] = match[0]
            out.append(_unescaped(match[0]))
            at, done = at + 1, match.end()
        rest = text[done:]
        incomplete = _OPEN_ESCAPE.search(rest)
        self._open_escape = incomplete[0] if incomplete is not None else ""
        out.append(rest[: len(rest) - len(self._open_escape)])
        return "".join(out)


def _origin(text: str, looks: str, place: int) -> tuple[int, int]:
    """The character that a place of the folded text came from, and the place where that character's folded form begins.

    The place at the end came from the end of the text.
    """
    position, at = len(text), len(looks)
    if place == 0 < at:
        return 0, 0
    if at == place:
        return position, at
    if position == at and text.isascii():  # no character folds to several here
        return place, place
    while at > place:
        position -= 1
        at -= len(fold(text[position]))
    return position, at


def _is_base(char: str) -> bool:
    folded = fold(char)
    return bool(folded) and not is_mark(folded[0])


def _unescaped(escape: str) -> str:
    if escape[1] != "u":
        return _SHORT_ESCAPES.get(escape[1], escape[1])
    units = [int(escape[2:6], 16)] + ([int(escape[8:12], 16)] if len(escape) > 6 else [])
    if len(units) == 1:
        return chr(units[0])
    return chr(0x10000 + ((units[0] - 0xD800) << 10) + (units[1] - 0xDC00))
