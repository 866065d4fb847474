"""`with_raw_response` and `with_streaming_response` of the client itself."""

from deepseek_client.client import AsyncDeepSeek, DeepSeek
from deepseek_client.raw import async_raw, async_streaming, raw, streaming


class DeepSeekWithRawResponse:
    """`with_raw_response` of the client itself."""

    def __init__(self, client: DeepSeek) -> None:
        self.generate = raw(client.generate)


class DeepSeekWithStreamingResponse:
    """`with_streaming_response` of the client itself."""

    def __init__(self, client: DeepSeek) -> None:
        self.generate = streaming(client.generate)


class AsyncDeepSeekWithRawResponse:
    """`with_raw_response` of the client itself."""

    def __init__(self, client: AsyncDeepSeek) -> None:
        self.generate = async_raw(client.generate)


class AsyncDeepSeekWithStreamingResponse:
    """`with_streaming_response` of the client itself."""

    def __init__(self, client: AsyncDeepSeek) -> None:
        self.generate = async_streaming(client.generate)
