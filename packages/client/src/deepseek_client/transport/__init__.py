"""Two drivers that do the effects of the core over httpx: the only folder that knows an HTTP library."""

from deepseek_client.transport.async_transport import AsyncTransport
from deepseek_client.transport.sync_transport import SyncTransport

__all__ = ["AsyncTransport", "SyncTransport"]
