"""Talk to an ASGI app in one's own process, without sockets: an app, a test or a notebook runs SDK, gateway and engine.

Unlike the ASGI transports of httpx and httpx2, which collect the whole answer first, these hand over each chunk as it
is sent, tell the app when the answer is closed, and run its lifespan.
"""

from deepseek_client.asgi.transport import ASGITransport, AsyncASGITransport

__all__ = ["ASGITransport", "AsyncASGITransport"]
