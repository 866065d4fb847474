"""What the head of a request may be: its bounds, and nothing in it that two servers could read in two ways.

Source: RFC 9112, sections 3 (targets and Host) and 6 (lengths); RFC 9110, section 7.8 (Upgrade may be ignored).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

Headers = Sequence[tuple[bytes, bytes]]

LENGTHS = frozenset({b"content-length", b"transfer-encoding"})
_READ = LENGTHS | {b"host", b"expect"}
VERSIONS = frozenset({"1.0", "1.1"})

_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(?:\?(.*))?", re.IGNORECASE)


class RefusalError(Exception):
    """The request is answered with this status, and its connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds on the head of a request: line and headers together; and on connections at once."""

    max_bytes: int = 32 * 1024
    max_headers: int = 100
    timeout_s: float = 10.0
    max_connections: int = 20_000

    def too_large(self) -> RefusalError:
        """The head has too many bytes."""
        return RefusalError(431, f"the request's head is larger than {self.max_bytes} bytes")

    def too_many(self) -> RefusalError:
        """The head has too many headers."""
        return RefusalError(431, f"the request has more than {self.max_headers} headers")


@dataclass(frozen=True, slots=True)
class Target:
    """What a request asks for. `host` is there where the target itself names it: then that counts, not `Host`."""

    raw_path: bytes
    query: bytes
    host: bytes | None = None

    @property
    def path(self) -> str:
        """The path as routes read it."""
        path = self.raw_path.decode("ascii")
        return unquote(path) if "%" in path else path


@lru_cache(256)
def is_host(value: bytes) -> bool:
    """Whether this is a name or an address, with a port or without."""
    return _HOST.fullmatch(value) is not None


def read_target(url: bytes) -> Target:
    """The target of a request line.

    Raises:
        RefusalError: 400, it is none, or holds what no target has: a fragment, a user, another scheme.
    """
    if b"#" in url:
        raise RefusalError(400, "a request's target has no fragment")
    if url.startswith(b"/") or url == b"*":
        path, _, query = url.partition(b"?")
        return Target(path, query)
    found = _ABSOLUTE.fullmatch(url)
    if found is None or not is_host(found[1]):
        raise RefusalError(400, "a request's target is a path, or an http or https URL without a user")
    return Target(found[2] or b"/", found[3] or b"", found[1])


def check_head(method: bytes, version: str, headers: Headers) -> bool:
    """Whether the caller waits for "100 Continue" before it sends its body.

    Raises:
        RefusalError: the head could be read in two ways, or is of another HTTP.
    """
    if version not in VERSIONS:
        raise RefusalError(505, "this server speaks HTTP 1.0 and 1.1")
    if method == b"CONNECT":
        raise RefusalError(400, "this server is no proxy: leave out CONNECT")
    must_wait, hosts, lengths = False, list[bytes](), list[tuple[bytes, bytes]]()
    for header in headers:
        name = header[0]
        if name not in _READ:
            continue
        if name in LENGTHS:
            lengths.append(header)
        elif name == b"host":
            hosts.append(header[1])
        elif name == b"expect":
            must_wait = version != "1.0" and header[1].lower() == b"100-continue"
    if len(hosts) != 1 and not (not hosts and version == "1.0"):
        raise RefusalError(400, f"a request has one Host header, not {len(hosts)}")
    if hosts and not is_host(hosts[0]):
        raise RefusalError(400, "the Host header is no host: write name:port")
    if len(lengths) > 1:
        raise RefusalError(400, "a request has one Content-Length or one Transfer-Encoding, not both or several")
    if lengths and lengths[0][0] == b"transfer-encoding":
        _check_encoding(version, lengths[0][1])
    return must_wait


def without_upgrade(method: bytes, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request that would change protocols, as that of one that would not."""
    lines = [
        method + b" " + url + b" HTTP/1.1",
        *(name + b": " + value for name, value in headers if name != b"upgrade"),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _check_encoding(version: str, coding: bytes) -> None:
    if version == "1.0" or coding.strip().lower() != b"chunked":
        raise RefusalError(400, "the only Transfer-Encoding is chunked, and HTTP/1.0 has none")
