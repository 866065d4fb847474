"""`deepseek-gateway top`: requests, tokens, latencies, engines and the busiest keys, live."""

import argparse
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any, cast

from deepseek_gateway.cli.common import Commands
from deepseek_gateway.cli.tls_flags import add_tls_flags, tls_context
from deepseek_gateway.errors import GatewayError
from deepseek_gateway.top.samples import Samples, Span
from deepseek_gateway.top.view import CLEAR, MAX_KEYS, KeyUse, Screen

TIMEOUT_S = 5.0
EPILOG = "The busiest keys of today are shown with an admin key in DEEPSEEK_ADMIN_KEY."


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("top", help="watch a gateway in the terminal", epilog=EPILOG)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the gateway (http://127.0.0.1:8080)")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between two looks (2)")
    parser.add_argument("--once", action="store_true", help="print one screen, over one interval, and end")
    add_tls_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Show screens until interrupted."""
    if not parsed.url.startswith(("http://", "https://")):
        raise GatewayError(f"--url {parsed.url}: write http://host:port or https://host:port")
    url = parsed.url.rstrip("/")
    source = Source(url, os.environ.get("DEEPSEEK_ADMIN_KEY"), tls_context(url, parsed))
    screen = Screen(source.url, color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    before = source.samples()
    while True:
        time.sleep(max(0.1, parsed.interval))
        try:
            now = source.samples()
            text = screen.draw(Span(before, now), source.not_ready(), source.keys())
            before = now
        except GatewayError as error:
            if parsed.once:
                raise
            text = f"{error}\n"
        if parsed.once:
            print(text, end="")
            return 0
        print((CLEAR if screen.color else "") + text, end="", flush=True)


class Source:
    """A running gateway, asked over HTTP."""

    def __init__(self, url: str, admin_key: str | None, context: ssl.SSLContext | None) -> None:
        self.url = url
        self._admin_key = admin_key
        self._context = context

    def samples(self) -> Samples:
        """Its metrics now.

        Raises:
            GatewayError: it does not answer.
        """
        status, body = self._get("/metrics")
        if status != 200:
            raise GatewayError(f"{self.url}/metrics answers {status}")
        return Samples.parse(body.decode(errors="replace"), time.monotonic())

    def not_ready(self) -> str:
        """Why it takes no traffic; empty when it does."""
        status, body = self._get("/ready")
        return "" if status == 200 else str(_json(body).get("error", {}).get("message", status))

    def keys(self) -> list[KeyUse] | None:
        """What keys used today; None without an admin key that works."""
        if self._admin_key is None:
            return None
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        status, body = self._get(f"/admin/usage?since={today}&group_by=key&order=tokens&limit={MAX_KEYS}")
        if status != 200:
            return None
        rows: list[dict[str, Any]] = _json(body).get("data", [])
        return [KeyUse(row["key_id"], row["key_name"], row["requests"], row["total_tokens"]) for row in rows]

    def _get(self, path: str) -> tuple[int, bytes]:
        headers = {} if self._admin_key is None else {"authorization": f"Bearer {self._admin_key}"}
        request = urllib.request.Request(f"{self.url}{path}", headers=headers)  # noqa: S310  checked by `run`
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self._context) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise GatewayError(f"{self.url} cannot be reached: {reason}") from None


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
