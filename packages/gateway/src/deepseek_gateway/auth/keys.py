"""API keys: their text form, and the hash that is kept.

`dsk_<public id: 12 base62>_<secret: 43 base62, over 256 bits>_<CRC-32 of all before it: 6 base62>`. The public id is
the handle in logs and tables. The CRC refuses typing errors without a look-up, and lets scanners recognise leaked keys.
Source: GitHub's token format (github.blog, "Behind GitHub's new authentication token formats").
"""

import hashlib
import hmac
import os
import re
import string
import zlib
from dataclasses import dataclass

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PUBLIC_ID_LENGTH, SECRET_LENGTH, CRC_LENGTH = 12, 43, 6
NAME_LENGTH, NAMES_DRAWN = 22, 64

_DIGIT_OF_BYTE = bytes(ord(ALPHABET[byte % 62]) for byte in range(256))
_BIASED = bytes(range(248, 256))
"""Bytes past the last whole multiple of 62: using them would make some characters likelier."""

_FORM = re.compile(rf"(dsk_([0-9A-Za-z]{{{PUBLIC_ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}}))_([0-9A-Za-z]{{6}})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's two parts. `repr` leaves the secret out."""

    public_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKey({self.public_id!r})"

    @property
    def text(self) -> str:
        """The key as callers send it."""
        body = f"dsk_{self.public_id}_{self.secret}"
        return f"{body}_{_crc(body)}"


def random_base62(length: int) -> str:
    """`length` random characters from 0-9, A-Z and a-z."""
    text = b""
    while len(text) < length:
        text += os.urandom(length + 8).translate(_DIGIT_OF_BYTE, _BIASED)
    return text[:length].decode()


def random_name() -> str:
    """22 random characters, for a request. Many are drawn at a time: each draw lets other threads in."""
    while True:
        try:
            return _names.pop()  # one step: no two threads get the same
        except IndexError:
            drawn = random_base62(NAME_LENGTH * NAMES_DRAWN)
            _names.extend(drawn[at : at + NAME_LENGTH] for at in range(0, len(drawn), NAME_LENGTH))


_names: list[str] = []
os.register_at_fork(after_in_child=_names.clear)


def new_key(public_id: str | None = None) -> ApiKey:
    """A fresh key, or a fresh secret for an id that exists."""
    return ApiKey(public_id or random_base62(PUBLIC_ID_LENGTH), random_base62(SECRET_LENGTH))


def parse_key(text: str) -> ApiKey | None:
    """The key in a text, or None when form or checksum is wrong."""
    match = _FORM.fullmatch(text)
    if match is None or not hmac.compare_digest(_crc(match[1]), match[4]):
        return None
    return ApiKey(match[2], match[3])


def hash_secret(pepper: bytes, key: ApiKey) -> str:
    """What is kept of a key: HMAC-SHA-256 of its secret, in hex. Useless to who steals the store without the pepper."""
    return hmac.new(pepper, f"{key.public_id}.{key.secret}".encode(), hashlib.sha256).hexdigest()


def cache_handle(text: str) -> bytes:
    """SHA-256 of the whole key: a part of it as handle would let two keys share an entry."""
    return hashlib.sha256(text.encode()).digest()


def _crc(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(CRC_LENGTH):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return digits
