"""Where an engine listens: a URL over TCP, or a unix socket."""

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """An engine's address. `base` is the URL that paths are added to; `socket_path` is set for a unix socket."""

    url: str
    base: str
    socket_path: str | None

    @classmethod
    def parse(cls, url: str) -> "UpstreamAddress":
        """Read `http://host:port[/v1]`, `https://…` or `unix:///path/to.sock`.

        Raises:
            ValueError: it is none of them, or carries credentials.
        """
        parts = urlsplit(url)
        if "@" in url or parts.query or parts.fragment:  # an @ after a / is a password that was not escaped
            raise ValueError("an upstream URL holds no credentials, query or fragment; `key` is for a bearer key")
        if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
            return cls(url, "http://engine", parts.path)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return cls(url, url.rstrip("/"), None)
        raise ValueError(f"{url!r} is no upstream: write http://host:port, https://host/v1 or unix:///path.sock")

    def endpoint(self, prefix: str, path: str) -> str:
        """The URL of an API path such as `chat/completions`; `prefix` is `v1` or `beta`."""
        if self.base.endswith(("/v1", "/beta")):
            return f"{self.base}/{path}"
        return f"{self.base}/{prefix}/{path}"

    def outside(self, path: str) -> str:
        """The URL of a path beside the API, such as `ready`."""
        return f"{self.base.removesuffix('/v1').removesuffix('/beta')}/{path}"
