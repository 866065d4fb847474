"""W3C trace context: which trace a request belongs to, from the caller's header to the engine's."""

import re
import secrets
from dataclasses import dataclass

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """One span: ids in hex, and whether its trace is kept."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @classmethod
    def parse(cls, header: str | None) -> "TraceParent | None":
        """What a caller sent; None when it sent none, or nothing that the standard allows."""
        match = None if header is None or len(header) > 256 else _FORM.fullmatch(header)
        if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
            return None
        if not int(match[2], 16) or not int(match[3], 16):
            return None
        return cls(match[2], match[3], bool(int(match[4], 16) & 1))

    @classmethod
    def begin(cls) -> "TraceParent":
        """A trace of our own."""
        return cls(secrets.token_hex(16), secrets.token_hex(8), is_sampled=True)

    def child(self) -> "TraceParent":
        """A span below this one."""
        return TraceParent(self.trace_id, secrets.token_hex(8), self.is_sampled)

    @property
    def header(self) -> str:
        """As it is sent on."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"
