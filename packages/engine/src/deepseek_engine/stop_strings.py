"""Stop strings over a stream of text: hold back only what may still become one."""

import msgspec


class Scan(msgspec.Struct, frozen=True, gc=False):
    """What a piece of text gave: text that is safe to send, and the stop string that was found, if one was."""

    text: str
    matched: str | None = None


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces (Knuth-Morris-Pratt, one automaton a string).

    The match that ends first wins, and of those that end together the longest; so the outcome does not depend on how
    the text was cut. The stop string and all after it are not given out. Each character costs amortised constant time a
    string, whatever the strings are.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = [(stop, _failure_table(stop)) for stop in stops]
        self._matched_lengths = [0] * len(stops)
        self._held = ""

    def push(self, text: str) -> Scan:
        """Take the next piece of text; not to be called after a match."""
        if not self._stops:
            return Scan(text)
        pending = self._held + text
        for at in range(len(self._held), len(pending)):
            found = self._advance(pending[at])
            if found is not None:
                self._held = ""
                return Scan(pending[: at + 1 - len(found)], found)
        keep = max(self._matched_lengths)
        cut = len(pending) - keep
        self._held = pending[cut:]
        return Scan(pending[:cut])

    def finish(self) -> str:
        """The held text: no more is coming, so it is no stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        found: str | None = None
        for which, (stop, failure) in enumerate(self._stops):
            length = self._matched_lengths[which]
            while length and stop[length] != character:
                length = failure[length - 1]
            if stop[length] == character:
                length += 1
            self._matched_lengths[which] = length
            if length == len(stop) and (found is None or len(stop) > len(found)):
                found = stop
        return found


def _failure_table(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper suffix that is a prefix too."""
    table = [0] * len(stop)
    length = 0
    for at in range(1, len(stop)):
        while length and stop[at] != stop[length]:
            length = table[length - 1]
        if stop[at] == stop[length]:
            length += 1
        table[at] = length
    return table
