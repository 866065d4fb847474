"""Two drivers that do the effects of the core over httpx: the only folder that knows an HTTP library."""

from deepseek_client.transport.drivers import AsyncTransport, SyncTransport

__all__ = ["AsyncTransport", "SyncTransport"]
