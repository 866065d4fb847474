"""What goes to the core and what comes back, as lines of a request log."""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from deepseek_engine.config import EngineConfig
from deepseek_engine.messages import Delta, StepOutputs, Submit
from deepseek_engine.request import Capacity
from deepseek_engine.request_log.log_file import LogFile
from deepseek_engine.request_log.records import (
    FORMAT,
    EndRecord,
    Header,
    Loaded,
    Record,
    RequestRecord,
    machine,
    software,
)

_encoder = msgspec.json.Encoder()


@dataclass(slots=True)
class _Open:
    """A request under way: its number, the tokens of each answer so far, and answers that have not ended."""

    number: int
    token_ids: list[list[int]]
    num_unfinished: int


class RequestRecorder:
    """Writes one engine's requests; belongs to the thread that submits them.

    Args:
        log: where to; begun here and closed by `close`.
        config: of the engine.
        capacity: what it has loaded.
        clock: seconds.

    Raises:
        InvalidRequestError: the log cannot be written.
    """

    def __init__(
        self, log: LogFile, config: EngineConfig, capacity: Capacity, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._clock = clock
        self._started_s = clock()
        self._salt_key = secrets.token_bytes(32)  # never written, so that salts cannot be guessed from their hashes
        self._open: dict[str, _Open] = {}
        self._num_requests = 0
        header = Header(
            format=FORMAT,
            run=secrets.token_hex(8),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            software=software(),
            machine=machine(),
            loaded=Loaded.of(capacity),
            config=config,
        )
        log.begin(_line(header))

    def add(self, submit: Submit, step: int, adapter_path: str | None = None) -> None:
        """A request goes to the core, with a seed of its own (`with_seed`)."""
        number, n = self._num_requests, submit.params.n
        self._num_requests += 1
        self._open[submit.request_id] = _Open(number, [[] for _ in range(n)], n)
        self._write(
            RequestRecord(
                number=number,
                offset_s=self._offset_s(),
                step=step,
                submit=replace(submit, cache_salt=self._hashed(submit.cache_salt)),
                adapter_path=adapter_path,
            )
        )

    def take(self, outputs: StepOutputs) -> None:
        """The core has said something."""
        for delta in outputs.deltas:
            request = self._open.get(delta.request_id)
            if request is None:
                continue
            request.token_ids[delta.index] += delta.token_ids
            if delta.finish_reason is not None:
                self._end(request, delta, outputs.stats.num_steps)

    def close(self) -> None:
        """Write what is left."""
        self._log.close()

    def _end(self, request: _Open, delta: Delta, step: int) -> None:
        assert delta.finish_reason is not None
        self._write(
            EndRecord(
                number=request.number,
                index=delta.index,
                offset_s=self._offset_s(),
                step=step,
                finish_reason=delta.finish_reason,
                token_ids=request.token_ids[delta.index],
                stop_token_id=delta.stop_token_id,
                num_prompt_tokens=delta.num_prompt_tokens,
                num_cached_tokens=delta.num_cached_tokens,
                num_reasoning_tokens=delta.num_reasoning_tokens,
                num_preemptions=delta.num_preemptions,
                queue_s=round(delta.queue_s, 6),
                timed_out=delta.timed_out,
                error=delta.error,
            )
        )
        request.num_unfinished -= 1
        if not request.num_unfinished:
            del self._open[delta.request_id]

    def _write(self, record: Record) -> None:
        self._log.write(_line(record))

    def _offset_s(self) -> float:
        return round(self._clock() - self._started_s, 6)

    def _hashed(self, salt: str) -> str:
        """Equal for equal salts of this run; no salt stays none."""
        return hashlib.blake2b(salt.encode(), key=self._salt_key, digest_size=8).hexdigest() if salt else ""


def with_seed(submit: Submit) -> Submit:
    """The request with the seed that it would get in the core, so that it is known here."""
    if submit.params.seed is not None:
        return submit
    return replace(submit, params=replace(submit.params, seed=secrets.randbits(64)))


def _line(record: Record) -> bytes:
    return _encoder.encode(record) + b"\n"
