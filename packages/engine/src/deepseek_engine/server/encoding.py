"""Texts and conversations to token ids without holding up the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from deepseek_engine.chat.conversation import Conversation
from deepseek_engine.tokenizer import EncodedChat, Tokenizer

_THREAD_CHARS: Final = 4096
"""Longer texts are tokenised in a thread: about 5 ms of work, which running streams would feel."""
_NUM_TEMPLATE_THREADS: Final = 2
"""One waits for the template's process while the other tokenises what came out of it."""

Result = TypeVar("Result")


class PromptEncoder:
    """One model's tokenizer, for use on an event loop.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Threads of their own: a template that takes its time keeps other chats waiting, and nothing else.
        self._template_threads = ThreadPoolExecutor(_NUM_TEMPLATE_THREADS, thread_name_prefix="chat-template")

    async def texts(self, prompts: list[str | list[int]]) -> list[list[int]]:
        """Token ids of each prompt; those that are ids already stay as they are."""
        encode = self._tokenizer.encode
        return await _off_loop(
            sum(map(len, prompts)),
            lambda: [encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts],
        )

    async def conversation(self, conversation: Conversation, num_chars: int) -> EncodedChat:
        """Token ids of a conversation.

        Args:
            conversation: the turns.
            num_chars: how long they are together with the tools, about.

        Raises:
            InvalidRequestError: the model has no chat encoder, or its encoder refuses the conversation.
            QueueFullError: the chat template is busy with others.
        """
        encoder = self._tokenizer.chat_encoder
        if encoder is None or not encoder.may_block:
            return await _off_loop(num_chars, lambda: self._tokenizer.encode_conversation(conversation))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._template_threads, self._tokenizer.encode_conversation, conversation)


async def _off_loop(num_chars: int, work: Callable[[], Result]) -> Result:
    """Do short work here and long work in a thread."""
    return await asyncio.to_thread(work) if num_chars > _THREAD_CHARS else work()
