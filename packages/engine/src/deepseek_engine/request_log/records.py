"""The lines of a request log: a header, then a line for each request and one for each answer that has ended."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from deepseek_engine.config import EngineConfig
from deepseek_engine.messages import FinishReason, Submit
from deepseek_engine.request import Capacity

FORMAT: Final = 1


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What the core had loaded, under the names of `Ready`."""

    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    weight_bytes: int

    @classmethod
    def of(cls, capacity: Capacity) -> "Loaded":
        """The part of it that decides about answers."""
        return cls(**{name: getattr(capacity, name) for name in cls.__struct_fields__})


class Header(msgspec.Struct, frozen=True, kw_only=True, tag="header"):
    """The first line of every file.

    Attributes:
        format: of these lines.
        run: the same in all files of one start of the engine.
        started_at: in UTC, as ISO 8601 has it.
        software: versions.
        machine: what else may change a token.
    """

    format: int
    run: str
    started_at: str
    software: dict[str, str]
    machine: dict[str, str]
    loaded: Loaded
    config: EngineConfig


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """A request.

    Attributes:
        number: what the lines of its ends refer to; ids may come again, numbers do not.
        offset_s: seconds from the header to its arrival.
        step: the steps that the core had computed by then, as far as was known.
        submit: what the core got. Its seed is the one that was used, its `cache_salt` a keyed hash of the real one.
        adapter_path: the folder of its adapter.
    """

    number: int
    offset_s: float
    step: int
    submit: Submit
    adapter_path: str | None = None


class EndRecord(msgspec.Struct, frozen=True, kw_only=True, tag="end", omit_defaults=True):
    """The end of one answer; fields that `Delta` has as well mean the same."""

    number: int
    index: int
    offset_s: float
    step: int
    finish_reason: FinishReason
    token_ids: list[int]
    stop_token_id: int | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0
    num_preemptions: int = 0
    queue_s: float = 0.0
    timed_out: bool = False
    error: str | None = None


Record = Header | RequestRecord | EndRecord


def software() -> dict[str, str]:
    """Versions of what computes here."""
    packages = {name: version(name) for name in ("deepseek-engine", "torch", "numpy")}
    return {**packages, "python": platform.python_version()}


def machine() -> dict[str, str]:
    """The processor here."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"processor": name, "cores": str(os.cpu_count())}
