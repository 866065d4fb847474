"""Lists in pages: where one ends, the next begins, whatever is added or removed in between."""

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Self

from deepseek_gateway.errors import ApiError


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last entry of a page, by the order of all lists: when it was created, then its id."""

    created: float
    id: str

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.created!r}:{self.id}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that a page came with.

        Raises:
            ApiError: 422, it is none.
        """
        try:
            decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
            created, _, found_id = decoded.partition(":")
            cursor = cls(float(created), found_id)
        except (ValueError, binascii.Error):
            cursor = None
        if cursor is None or not math.isfinite(cursor.created) or not cursor.id or not cursor.id.isprintable():
            raise ApiError(422, f"cursor={text[:80]!r} is none: take next_cursor of the page before", param="cursor")
        return cursor
