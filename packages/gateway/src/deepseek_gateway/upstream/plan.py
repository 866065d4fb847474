"""What a request sends, to whichever engine it goes."""

from collections.abc import Callable
from dataclasses import dataclass

from deepseek_gateway.config.sections import UpstreamKind
from deepseek_gateway.upstream.address import UpstreamAddress
from deepseek_gateway.upstream.pool import Placement, RouteAsk

_BESIDE_THE_API = frozenset({"tokenize", "detokenize"})


@dataclass(frozen=True, slots=True)
class CallPlan:
    """`path` is `chat/completions` and the like, `prefix` is `v1` or `beta`; the body depends on the engine."""

    prefix: str
    path: str
    ask: RouteAsk
    body_for: Callable[[Placement], bytes]
    cache_salt: str
    stream: bool
    traceparent: str | None = None

    def prefix_at(self, kind: UpstreamKind) -> str:
        """Where a kind of server has the path: the cloud has completions, with their suffix, under /beta only.

        Servers of other makers have no /beta at all.
        """
        if kind == "openai":
            return "v1"
        return "beta" if kind == "deepseek-cloud" and self.path == "completions" else self.prefix

    def url_at(self, kind: UpstreamKind, address: UpstreamAddress) -> str:
        """The URL at a server: those of other makers have their tokenizers beside the API, not in it."""
        if kind == "openai" and self.path in _BESIDE_THE_API:
            return address.outside(self.path)
        return address.endpoint(self.prefix_at(kind), self.path)

    def headers_at(self, kind: UpstreamKind, attempt_id: str) -> dict[str, str]:
        """Headers for a kind of server: nothing of ours goes to the cloud."""
        if kind == "deepseek-cloud":
            return {}
        headers = {"x-request-id": attempt_id}
        if self.traceparent is not None:
            headers["traceparent"] = self.traceparent
        if kind == "engine":
            headers["x-cache-salt"] = self.cache_salt
        return headers
