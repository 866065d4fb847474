"""Numbers of bytes as people write them."""

import re
from typing import Final

_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str) -> int:
    """A number of bytes: `1048576`, `512MiB`, `2G`; units are powers of 1024.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a number of bytes: write 2GiB, 512MiB or 1048576")
    return int(float(match[1]) * _UNITS[match[2]])
