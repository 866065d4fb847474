"""Readings of a stream: each event's data to the item that the caller gets, and all of them to one answer.

A Reading is per stream and does no I/O. Parts are kept in lists and joined on demand, so that a chunk costs the same
at the end of a long answer as at its beginning.
"""

from deepseek_client.readings.base import AnswerT, ItemT, Reading, SoFar
from deepseek_client.readings.chat import ChatReading, EventReading
from deepseek_client.readings.text import (
    CompletionReading,
    GenerationReading,
    ResponseReading,
    TextReading,
    as_generation,
)

__all__ = [
    "AnswerT",
    "ChatReading",
    "CompletionReading",
    "EventReading",
    "GenerationReading",
    "ItemT",
    "Reading",
    "ResponseReading",
    "SoFar",
    "TextReading",
    "as_generation",
]
