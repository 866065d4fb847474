"""Encryption of kept texts: one data key a subject, wrapped by a master key that is not in the store.

Whoever deletes a subject's wrapped key makes every text of that subject unreadable, in every backup that has no copy of
the wrapped key. AES-256-GCM throughout (NIST SP 800-38D); the subject and the request's id are authenticated with the
ciphertext, so that no text can be moved to another row.
"""

import base64
import binascii
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_gateway.errors import ConfigurationError, GatewayError

KEY_BYTES = 32
NONCE_BYTES = 12
EXTRA = "kept texts need an extra: pip install 'deepseek-gateway[retention]'"


class VaultError(GatewayError):
    """A text or a key does not open: another master key, or a changed row."""


@dataclass(frozen=True, slots=True)
class Vault:
    """Seals under a master key. `repr` leaves it out."""

    master: bytes

    def __post_init__(self) -> None:
        if len(self.master) != KEY_BYTES:
            raise ConfigurationError(f"the master key of kept texts has {len(self.master)} bytes, not {KEY_BYTES}")
        _aes_gcm(self.master)

    def __repr__(self) -> str:
        return f"Vault({self.name!r})"

    @property
    def name(self) -> str:
        """Which master key this is: says nothing about it."""
        return hashlib.sha256(b"deepseek-gateway master key " + self.master).hexdigest()[:16]

    def new_data_key(self, subject: str) -> tuple[bytes, bytes]:
        """A data key, and what is kept of it: the key wrapped under the master key."""
        key = secrets.token_bytes(KEY_BYTES)
        return key, _seal(self.master, key, f"data key of {subject}")

    def unwrap(self, subject: str, wrapped: bytes) -> bytes:
        """The data key in what was kept.

        Raises:
            VaultError: it was wrapped under another master key.
        """
        try:
            return _open(self.master, wrapped, f"data key of {subject}")
        except VaultError:
            raise VaultError(f"the data key of {subject} was made with another master key than {self.name}") from None


def seal_text(data_key: bytes, subject: str, request_id: str, text: bytes) -> bytes:
    """A text as it is kept."""
    return _seal(data_key, text, f"{subject} {request_id}")


def open_text(data_key: bytes, subject: str, request_id: str, sealed: bytes) -> bytes:
    """The text in what was kept.

    Raises:
        VaultError: it is another row's, or was changed.
    """
    return _open(data_key, sealed, f"{subject} {request_id}")


def load_master_key(path: Path, given: str | None) -> bytes | None:
    """The master key from the setting, else from its file; None where there is neither.

    Raises:
        ConfigurationError: it is no key of 32 bytes in base64, or others can read the file.
    """
    if given is not None:
        return _decoded(given, "GATEWAY_PAYLOAD_KEY")
    try:
        mode, text = path.stat().st_mode, path.read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if mode & 0o077:
        raise ConfigurationError(f"{path} has mode {mode & 0o777:o}: others can read it; run `chmod 600 {path}`")
    return _decoded(text, str(path))


def create_master_key(path: Path) -> bool:
    """Write a random master key unless there is one; whole or not at all. Gives whether it was made now."""
    if path.exists():
        return False
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails where rename would overwrite another process's key
        except FileExistsError:
            return False
    finally:
        draft.unlink()
    return True


def _decoded(text: str, source: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"{source} is no key: write 32 random bytes in base64, as `openssl rand -base64 32`")
    return key


def _seal(key: bytes, text: bytes, name: str) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _aes_gcm(key).encrypt(nonce, text, name.encode())


def _open(key: bytes, sealed: bytes, name: str) -> bytes:
    from cryptography.exceptions import InvalidTag  # an extra, and slow to load

    try:
        return _aes_gcm(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
    except (InvalidTag, ValueError):
        raise VaultError(f"what is kept for {name} does not open: it was changed, or its key was erased") from None


def _aes_gcm(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # an extra, and slow to load
    except ImportError as error:
        raise ConfigurationError(EXTRA) from error
    return AESGCM(key)
