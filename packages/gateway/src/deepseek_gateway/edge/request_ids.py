"""Names of requests: `req-`, the millisecond in 11 hexadecimal digits, 13 random characters.

They sort by time, as UUIDv7 does, so that the rows of a commit stand side by side in every index by request id: with
random ids each row is written to a page of its own. Digits and small letters sort alike in every database.
"""

import time

from deepseek_gateway.auth.keys import random_name

TAIL_LENGTH = 13
"""77 random bits within a millisecond; UUIDv7 has 74."""


def new_request_id() -> str:
    """A name that no other request has, after all that were given before this millisecond."""
    return f"req-{time.time_ns() // 1_000_000:011x}{random_name()[:TAIL_LENGTH]}"
