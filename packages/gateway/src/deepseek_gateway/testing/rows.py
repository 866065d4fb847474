"""Rows of the ledger for tests."""

import itertools
from typing import Any

from deepseek_gateway.ledger.records import LedgerRow

_NUMBERS = itertools.count()


def ledger_row(**values: object) -> LedgerRow:
    """A row of a request of its own that went well, but for these values."""
    given: dict[str, Any] = {
        "request_id": f"req-{next(_NUMBERS)}",
        "attempt": 1,
        "key_id": "key-a",
        "route": "/v1/generate",
        "model": "m",
        "upstream": "http://e",
        "stream": True,
        "status": "finished",
        "end_reason": "stop",
        "http_status": 200,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cached_tokens": 4,
        "accuracy": "exact",
        "latency_ms": 100.0,
        "ttft_ms": 10.0,
        "created": 0.0,
        **values,
    }
    return LedgerRow(**given)
