"""The pepper: the secret that key hashes are made with, kept apart from the store."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from deepseek_gateway.errors import ConfigurationError

PEPPER_BYTES = 32


def load_pepper(path: Path, given: str | None) -> bytes:
    """The pepper from the setting, else from its file.

    Raises:
        ConfigurationError: neither is there, the file can be read by others, or the value is too short.
    """
    if given is not None:
        return _checked(given.encode(), "GATEWAY_KEY_PEPPER")
    try:
        mode = path.stat().st_mode
        value = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} is missing: restore it, or run `deepseek-gateway migrate` for a new store"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigurationError(f"{path} has mode {mode & 0o777:o}: others can read it; run `chmod 600 {path}`")
    return _checked(value, str(path))


def create_pepper(path: Path) -> None:
    """Write a random pepper unless there is one; whole or not at all, also when two processes try."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(PEPPER_BYTES).encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails where rename would overwrite the other process's pepper
        except FileExistsError:
            return
    finally:
        draft.unlink()


def fingerprint(pepper: bytes) -> str:
    """A value to keep in the store, so that a start with another pepper is noticed instead of refusing every key."""
    return hmac.new(pepper, b"deepseek-gateway pepper fingerprint", hashlib.sha256).hexdigest()[:32]


def _checked(value: bytes, source: str) -> bytes:
    value = value.strip()
    if len(value) < 16:
        raise ConfigurationError(f"{source} holds {len(value)} bytes: a pepper needs at least 16")
    return value
