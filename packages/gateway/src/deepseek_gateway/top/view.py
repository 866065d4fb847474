"""One screen of text from two readings."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_gateway.top.samples import Labels, Span

BOLD, RED, GREEN, DIM, RESET = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[0m"
CLEAR = "\x1b[H\x1b[2J"
MAX_KEYS = 8


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What one key used today."""

    key_id: str
    name: str
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Screen:
    """Draws. Without `color` there are no control characters, for scripts and files."""

    url: str
    color: bool

    def draw(self, span: Span, ready: str, keys: Sequence[KeyUse] | None) -> str:
        """All lines. `ready` is empty when the gateway is; `keys` None when nobody may ask for them."""
        state = self._paint("ready", GREEN) if not ready else self._paint(f"not ready: {ready}", RED)
        lines = [f"{self._paint('deepseek-gateway', BOLD)} {self.url}  {state}", "", *self._traffic(span)]
        lines += ["", self._paint(f"{'ENGINE':40} {'STATE':10} {'RUNNING':>8} {'WAITING':>8}", BOLD)]
        lines += self._engines(span)
        if keys is not None:
            lines += ["", self._paint(f"{'KEY TODAY':14} {'NAME':24} {'REQUESTS':>10} {'TOKENS':>12}", BOLD)]
            busiest = sorted(keys, key=lambda key: (-key.tokens, -key.requests, key.key_id))[:MAX_KEYS]
            lines += [
                f"{key.key_id:14} {plain(key.name)[:24]:24} {key.requests:>10} {key.tokens:>12}" for key in busiest
            ]
        return "\n".join(lines) + "\n"

    def _traffic(self, span: Span) -> list[str]:
        errors = span.rate("requests_total", is_fault)
        since = "since its start" if span.seconds is None else f"last {span.seconds:.0f} s"
        ttft = [_seconds(span.quantile("time_to_first_token_seconds", share)) for share in (0.5, 0.95)]
        whole = [_seconds(span.quantile("request_duration_seconds", share)) for share in (0.5, 0.95)]
        bad = f"{_number(errors)}/s" if errors is not None else f"{span.grown('requests_total', is_fault):.0f}"
        return [
            f"in flight {span.now.total('in_flight_requests'):.0f}   "
            f"requests/s {_number(span.rate('requests_total', is_api))}   "
            f"tokens/s out {_number(span.rate('tokens_total', is_completion))}   "
            f"errors {self._paint(bad, RED) if errors or span.grown('requests_total', is_fault) else bad}",
            f"first token p50 {ttft[0]}  p95 {ttft[1]}   whole p50 {whole[0]}  p95 {whole[1]}   "
            + self._paint(f"({since})", DIM),
            f"limited {span.grown('limited_requests_total'):.0f}   shed {span.grown('shed_requests_total'):.0f}   "
            f"queued {span.now.total('queue_length'):.0f}   "
            f"rows waiting for the store {span.now.total('ledger_pending_rows'):.0f}",
        ]

    def _engines(self, span: Span) -> list[str]:
        now = span.now
        running = now.by("upstream_in_flight_requests", "upstream")
        waiting = now.by("upstream_waiting_requests", "upstream")
        lines: list[str] = []
        for name, up in sorted(now.by("upstream_up", "upstream").items()):
            state = self._paint(f"{'up':10}", GREEN) if up else self._paint(f"{'down':10}", RED)
            waits = f"{waiting[name]:.0f}" if name in waiting else "-"
            lines.append(f"{plain(name)[:40]:40} {state} {running.get(name, 0):>8.0f} {waits:>8}")
        return lines or ["none"]

    def _paint(self, text: str, code: str) -> str:
        return f"{code}{text}{RESET}" if self.color else text


def is_api(labels: Labels) -> bool:
    """A request for work: not a look of a machine at our state."""
    return labels.get("route", "").startswith("/v1/")


def is_fault(labels: Labels) -> bool:
    """An answer that is the gateway's or an engine's fault."""
    return labels.get("status", "").startswith("5") and labels.get("route") != "/ready"


def is_completion(labels: Labels) -> bool:
    """Tokens of answers."""
    return labels.get("kind") == "completion"


def plain(text: str) -> str:
    """Names that people chose must not steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
