"""Secrets by reference: `env:NAME` and `file:/path`, so that no configuration file has to hold one."""

import os
import re
from pathlib import Path

MAX_SECRET_BYTES = 64 * 1024
ESCAPES = "write special characters of a password as %2F for / and the like"

_QUOTED = re.compile(r"""'[^']*'?|"[^"]*"?|//\S*""")


def resolve_secret(value: str) -> str:
    """What a reference stands for; anything else is the secret itself.

    Raises:
        ValueError: the variable or the file is not there, or empty.
    """
    kind, _, where = value.partition(":")
    if kind == "env" and where.isidentifier():
        secret = os.environ.get(where, "")
        if not secret:
            raise ValueError(f"the variable {where} is not set")
        return secret
    if kind == "file" and where.startswith("/"):
        return _read(Path(where))
    return value


def is_reference(value: object) -> bool:
    """Whether a value of a configuration file leaves the secret elsewhere."""
    return isinstance(value, str) and value.startswith(("env:", "file:/"))


def without_values(error: BaseException) -> str:
    """What a reader of URLs says, less the parts that it quotes: a password may be among them."""
    return _QUOTED.sub("…", str(error))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SECRET_BYTES + 1).decode().strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{path} cannot be read: {reason}") from None
    if not text or len(text) > MAX_SECRET_BYTES:
        raise ValueError(f"{path} is {'too large' if text else 'empty'}")
    return text
