"""A runner without a model or torch, whose every token depends on every token before it.

`forward` writes token ids to cache slots and reads the whole prefix back through the block table; the next token is a
hash of what it read. A block that was shared, freed or overwritten by mistake therefore changes the answer, and "the
same tokens alone, batched, chunked, preempted, forked and with a prefix hit" is a real test of the scheduler.
"""

import hashlib
import re
import struct
import threading
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from typing import Final
from urllib.parse import parse_qsl

from deepseek_engine.config import EngineConfig
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.messages import TokenLogprobs
from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.runner_protocol import AdapterHost, Drafter, RunnerInfo
from deepseek_engine.sequence import PENDING_TOKEN_ID, SampledToken, ScheduledSequence
from deepseek_engine.testing.fake_launcher import FakeLauncher

DEFAULT_VOCAB_SIZE: Final = 512
_NEVER_WRITTEN: Final = -1


@dataclass(frozen=True, slots=True)
class Faults:
    """Tokens that do harm to the step that computes them, and a lack of memory.

    Attributes:
        fail_token: it raises.
        die_token: it raises, and so does every step after it.
        hang_token: it never ends; the interpreter's other threads go on.
        freeze_token: it never ends, and keeps the interpreter's lock, so that no other thread goes on.
        lose_token: it is computed, and the runner says from then on that it has lost what it needs.
        memory_tokens: a step of more tokens than this runs out of memory; drafts count.
    """

    fail_token: int | None = None
    die_token: int | None = None
    hang_token: int | None = None
    freeze_token: int | None = None
    lose_token: int | None = None
    memory_tokens: int | None = None


NO_FAULTS: Final = Faults()


class FakeRunner:
    """Implements the Runner protocol.

    Args:
        info: the sizes to pretend to.
        step_s: how long each step takes.
        faults: what goes wrong, and when.

    Attributes:
        launcher: None, or one that launches its steps: `FakeLauncher(runner)`.
        num_caches_freed: how often it was told to give memory back.
    """

    def __init__(self, info: RunnerInfo, *, step_s: float = 0.0, faults: Faults = NO_FAULTS) -> None:
        self.info = info
        self.adapters: AdapterHost | None = None
        self.launcher: FakeLauncher | None = None
        self.drafter: Drafter | None = None
        self.num_caches_freed = 0
        self.failure: str | None = None
        self._step_s = step_s
        self._faults = faults
        self._is_dead = False
        self._slots = [_NEVER_WRITTEN] * (info.num_blocks * info.block_size)

    def forward(self, batch: Seq[ScheduledSequence]) -> list[bytes]:
        """Store the new tokens; for each sequence that needs a token, the digest of its prefix up to each row."""
        if self._step_s:
            time.sleep(self._step_s)
        if self.launcher is not None:
            self.launcher.check_order(batch)
        self._check_memory(batch)
        for scheduled in batch:
            self._write(scheduled)
        return [self._read_digest(s, offset) for s in batch for offset in range(s.num_sampled_rows)]

    def read_prompts(self, batch: Seq[ScheduledSequence]) -> list[PromptPart]:
        """The negative of each token as its log-probability, or an embedding of the prompt's length and first token."""
        return [self._read(scheduled) for scheduled in batch if scheduled.read_positions]

    def _read(self, scheduled: ScheduledSequence) -> PromptPart:
        sequence, positions, reading = scheduled.sequence, scheduled.read_positions, scheduled.sequence.reading
        assert reading is not None
        if reading.purpose == "logprobs":
            next_ids = sequence.token_ids[positions.start + 1 : positions.stop + 1]
            return PromptPart(tuple(TokenLogprobs(-float(token_id)) for token_id in next_ids))
        is_whole = positions.stop == reading.end
        return PromptPart(embedding=struct.pack("<2f", reading.end, sequence.token_ids[0]) if is_whole else None)

    def sample(self, logits: list[bytes], batch: Seq[ScheduledSequence]) -> list[SampledToken]:
        """The token that follows from each digest."""
        sequences = [s.sequence for s in batch for _ in range(s.num_sampled_rows)]
        sampled: list[SampledToken] = []
        for digest, sequence in zip(logits, sequences, strict=True):
            seed = None if sequence.params.is_greedy else sequence.sampling_seed
            token_id = sequence.forced_token_id
            if token_id is None:
                token_id = _choose(digest, seed, self.info.vocab_size)
            logprobs = None if sequence.params.logprobs is None else TokenLogprobs(-float(token_id))
            sampled.append(SampledToken(token_id, logprobs))
        return sampled

    def free_caches(self) -> None:
        """Nothing is kept for speed."""
        if self.launcher is not None:
            self.launcher.check_order(())
        self.num_caches_freed += 1

    def close(self) -> None:
        """There is nothing to end."""

    def _check_memory(self, batch: Seq[ScheduledSequence]) -> None:
        limit = self._faults.memory_tokens
        num_tokens = sum(s.num_new_tokens + len(s.draft_token_ids) for s in batch)
        if limit is not None and num_tokens > limit:
            raise RuntimeError(f"[enforce fail] DefaultCPUAllocator: can't allocate memory for {num_tokens} tokens")

    def _suffer(self, token_id: int) -> None:
        faults = self._faults
        if token_id == faults.hang_token:
            threading.Event().wait()
        if token_id == faults.freeze_token:
            re.fullmatch("(a|aa)+b", "a" * 10_000)  # for ever, and the lock is not let go of within a match
        if token_id == faults.lose_token:
            self.failure = "rank 1 of 2 was ended by signal 9"
        self._is_dead = self._is_dead or token_id == faults.die_token
        if self._is_dead or token_id == faults.fail_token:
            raise RuntimeError(f"token {token_id} breaks this model")

    def _write(self, scheduled: ScheduledSequence) -> None:
        sequence = scheduled.sequence
        assert scheduled.num_new_tokens >= sequence.num_indivisible_tokens, "a bidirectional prefix was split"
        start = sequence.num_computed_tokens
        new_token_ids = sequence.token_ids[start : start + scheduled.num_new_tokens]
        for position, token_id in enumerate([*new_token_ids, *scheduled.draft_token_ids], start):
            assert token_id != PENDING_TOKEN_ID, "a token was read before it was known"
            if self._faults is not NO_FAULTS:
                self._suffer(token_id)
            self._slots[self._slot(sequence.block_table, position)] = token_id

    def _read_digest(self, scheduled: ScheduledSequence, offset: int) -> bytes:
        sequence = scheduled.sequence
        end = sequence.num_computed_tokens + scheduled.num_new_tokens + offset
        return _digest([self._slots[self._slot(sequence.block_table, position)] for position in range(end)])

    def _slot(self, block_table: list[int], position: int) -> int:
        block_size = self.info.block_size
        return block_table[position // block_size] * block_size + position % block_size


def expected_tokens(
    prompt_token_ids: Seq[int], num_tokens: int, *, seed: int | None = None, vocab_size: int = DEFAULT_VOCAB_SIZE
) -> list[int]:
    """The answer that the fake model gives to a prompt alone; `seed` is the sequence's, None for greedy."""
    token_ids = list(prompt_token_ids)
    for _ in range(num_tokens):
        token_ids.append(_choose(_digest(token_ids), seed, vocab_size))
    return token_ids[len(prompt_token_ids) :]


def build_fake_runner(config: EngineConfig) -> FakeRunner:
    """What `AsyncEngine.start(config, runner="deepseek_engine.testing.fake_runner:build_fake_runner")` builds.

    `config.model` is `fake`, with options as in `fake?step_s=0.01&fail_token=13&vocab_size=512`; faults go by the names
    that `Faults` has for them, and `overlap=1` gives it a launcher.

    Raises:
        ModelLoadError: the model is not called fake.
    """
    name, _, query = config.model.partition("?")
    options = dict(parse_qsl(query))
    if name != "fake":
        raise ModelLoadError(f"model={name!r}: the fake runner runs only 'fake'")
    info = RunnerInfo(
        max_model_len=config.max_model_len or 8192,
        vocab_size=int(options.get("vocab_size", DEFAULT_VOCAB_SIZE)),
        hidden_size=2,
        num_blocks=config.num_kv_blocks or 1024,
        block_size=config.block_size,
        dtype="float32",
        device="cpu",
        weight_bytes=0,
        kv_cache_bytes=0,
        max_prefix_len=config.max_num_batched_tokens if config.prompt_attention == "bidirectional" else None,
    )
    faults = {field.name: int(options[field.name]) for field in fields(Faults) if field.name in options}
    runner = FakeRunner(
        info, step_s=float(options.get("step_s", 0.0)), faults=Faults(**faults) if faults else NO_FAULTS
    )
    if options.get("overlap") == "1":
        runner.launcher = FakeLauncher(runner)
    return runner


def _digest(token_ids: Seq[int]) -> bytes:
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}i", *token_ids)).digest()


def _choose(digest: bytes, seed: int | None, vocab_size: int) -> int:
    if seed is not None:
        digest = hashlib.sha256(digest + seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little") % vocab_size
