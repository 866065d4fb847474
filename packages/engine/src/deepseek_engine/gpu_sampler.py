"""`sampler.py` for a GPU: the same tokens, chosen on the device; the next step may begin before the host knows them.

R rows of logits, V vocabulary. A step is four calls, on one stream: `prepare` writes what the rows ask for and copies
it to the device, `sample` launches kernels and nothing else (a CUDA graph may hold it), `send` starts the copy of the
results to the host, and `collect` waits for it. The next step may be prepared before this one is collected, but not
before this one is sent.
"""

import importlib
import os
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from deepseek_engine.filters import is_filtered
from deepseek_engine.kernels.sampling_rows import (
    IS_ADJUSTED,
    IS_FILTERED,
    IS_RANDOM,
    IS_REPORTED,
    MAX_FORBIDDEN,
    NOTHING,
    RESULT_WORDS,
    ROW,
    ROW_BYTES,
    Needs,
    RowTable,
    SamplingConfig,
    Scratch,
    neutral_row,
    scratch_bytes,
)
from deepseek_engine.messages import TokenLogprobs, TopLogprob
from deepseek_engine.sampler import MIN_TEMPERATURE
from deepseek_engine.sampling_params import MAX_LOGPROBS
from deepseek_engine.sequence import SampledToken, Sequence
from deepseek_engine.token_counts import TokenCounts

NUM_BUFFERS: Final = 3
"""Steps whose copies may be under way: one that the device computes, one that waits behind it, one being prepared."""

Records = np.ndarray[Any, Any]


class GpuSampler:
    """Chooses tokens for the steps of one stream.

    Args:
        vocab_size: V, at most the logits' width.
        max_rows: rows of logits at most.
        device: of the logits. On a CPU the kernels run in Triton's interpreter, or their plain twins do.
        config: sizes of the kernels' tiles.
    """

    def __init__(
        self, vocab_size: int, max_rows: int, device: torch.device, config: SamplingConfig | None = None
    ) -> None:
        self._vocab_size = vocab_size
        self._max_rows = max_rows
        self._device = device
        self._config = config or SamplingConfig()
        self._choose_tokens = _kernels(device)
        self._counts = TokenCounts(vocab_size, max_rows, device)
        self._settings: WeakKeyDictionary[Sequence, _Settings] = WeakKeyDictionary()
        self._table = RowTable.empty(max_rows, vocab_size, device)
        self._scratch = Scratch.allocate(max_rows, vocab_size, device, self._config)
        self._results = torch.zeros((max_rows, RESULT_WORDS), dtype=torch.int32, device=device)
        self._buffers = [_Buffer.allocate(max_rows, vocab_size, device) for _ in range(NUM_BUFFERS)]
        self._next = 0
        self._prepared: _Step | None = None
        self._sent: deque[_Step] = deque()

    @property
    def needs(self) -> Needs:
        """Which kernels the prepared step needs: one CUDA graph each."""
        assert self._prepared is not None, "prepare() comes first"
        return self._prepared.needs

    @staticmethod
    def max_bytes(vocab_size: int, max_rows: int, config: SamplingConfig | None = None) -> int:
        """Device memory that a sampler takes at most, counts of penalised sequences included."""
        counts = TokenCounts(vocab_size, max_rows, torch.device("cpu")).max_bytes
        table = RowTable.empty(max_rows, vocab_size, torch.device("meta")).buffer.nbytes
        return scratch_bytes(max_rows, vocab_size, config) + counts + table + max_rows * RESULT_WORDS * 4

    def set_kernels(self, choose_tokens: Callable[..., None]) -> None:
        """Launch others than the device's: the plain twins, or the same with other settings. For tests and tuning."""
        self._choose_tokens = choose_tokens

    def prepare(self, sequences: Seq[Sequence], offsets: Seq[int] | None = None) -> None:
        """Write what the rows of the next step ask for, and start its copy to the device.

        Args:
            sequences: of the rows, in their order; one that has several rows is there several times.
            offsets: how many tokens past the end of its sequence each row stands: behind draft tokens, or behind tokens
                that are chosen but not collected. 0 by default.

        Raises:
            ValueError: there are more rows than `max_rows`.
        """
        if len(sequences) > self._max_rows:
            raise ValueError(f"{len(sequences)} rows are more than max_rows={self._max_rows}")
        assert len(self._sent) < NUM_BUFFERS, "collect() is more than two steps behind"
        offsets = [0] * len(sequences) if offsets is None else offsets
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % NUM_BUFFERS
        buffer.wait()
        settings, positions, special_rows = self._look_up(sequences, offsets)
        flags = 0
        for each in set(settings):
            flags |= each.flags
        num_words = 0
        if flags or special_rows:
            records = buffer.write(settings)
            records["position"] = positions
            num_words = self._write_special(buffer, records, sequences, settings, positions, special_rows)
            flags = int(np.bitwise_or.reduce(records["flags"]))
        needs = Needs(
            adjust=bool(flags & IS_ADJUSTED),
            random=bool(flags & IS_RANDOM),
            filter=bool(flags & IS_FILTERED),
            report=bool(flags & IS_REPORTED),
        )
        if needs != NOTHING:  # or else the kernels read no records
            num_int64 = -(-(self._table.first_word + num_words) // 2)
            self._table.buffer[:num_int64].copy_(buffer.table.buffer[:num_int64], non_blocking=True)
            buffer.mark(self._device)
        self._prepared = _Step([each.num_top for each in settings], needs, buffer)

    def sample(self, logits_RV: Tensor, sampled_ids_R: Tensor, needs: Needs | None = None) -> None:
        """Launch what chooses the tokens; nothing is read on the host.

        Args:
            logits_RV: float32 or bfloat16, one row for each that was prepared; rows behind those, where a graph has
                more, get their likeliest token. Not changed.
            sampled_ids_R: int32 or int64 on the device, written.
            needs: those of the prepared step by default; another step with the same may replay the launches.
        """
        logits_RV = logits_RV[:, : self._vocab_size]
        wanted = self.needs if needs is None else needs
        self._choose_tokens(logits_RV, self._table, wanted, self._scratch, self._config, sampled_ids_R, self._results)

    def send(self) -> None:
        """Start the copy of the step's results to the host; behind `sample`, or the replay of its graph."""
        step = self._prepared
        assert step is not None, "prepare() comes first"
        num_rows = len(step.num_top)
        step.buffer.results[:num_rows].copy_(self._results[:num_rows], non_blocking=True)
        step.buffer.mark(self._device)
        self._sent.append(step)
        self._prepared = None

    def collect(self) -> list[SampledToken]:
        """Wait for the oldest step that was sent and is not collected; one token for each of its rows."""
        step = self._sent.popleft()
        step.buffer.wait()
        results = step.buffer.results[: len(step.num_top)].numpy()
        ids = cast("list[int]", results[:, 0].tolist())
        most = max((num_top for num_top in step.num_top if num_top is not None), default=None)
        if most is None:
            return [SampledToken(token_id) for token_id in ids]
        entries = _logprobs(results, step.num_top, most)
        return [SampledToken(token_id, entry) for token_id, entry in zip(ids, entries, strict=True)]

    def _look_up(self, sequences: Seq[Sequence], offsets: Seq[int]) -> tuple[list["_Settings"], list[int], list[int]]:
        """Settings and positions of the rows, and which rows ask for more than the settings say.

        Rows of one sequence follow each other, so that its drafts cost a comparison each.
        """
        settings: list[_Settings] = []
        positions: list[int] = []
        special_rows: list[int] = []
        last, found, num_tokens, is_special = None, None, 0, False
        for row, (sequence, offset) in enumerate(zip(sequences, offsets, strict=True)):
            if found is None or sequence is not last:
                last, found, num_tokens = sequence, self._settings_of(sequence), sequence.num_output_tokens
                has_state = sequence.token_mask is not None or sequence.thinking is not None
                is_special = has_state or sequence.adjusts_logits
            if is_special:
                special_rows.append(row)
            settings.append(found)
            positions.append(num_tokens + offset)
        return settings, positions, special_rows

    def _settings_of(self, sequence: Sequence) -> "_Settings":
        found = self._settings.get(sequence)
        if found is None:
            found = self._settings[sequence] = _Settings.of(sequence)
        return found

    def _write_special(
        self,
        buffer: "_Buffer",
        records: Records,
        sequences: Seq[Sequence],
        settings: "Seq[_Settings]",
        positions: Seq[int],
        rows: Seq[int],
    ) -> int:
        """What these rows ask for beside their settings; how many words it takes."""
        penalised = [row for row in rows if sequences[row].params.penalises_tokens]
        if penalised:
            found = self._counts.addresses([sequences[row] for row in penalised], [positions[row] for row in penalised])
            records["counts_address"][penalised] = found
        for row in rows:
            if sequences[row].thinking is not None and (forced := sequences[row].forced_token_id) is not None:
                assert positions[row] == sequences[row].num_output_tokens, "forced behind tokens that are not known"
                records["forced_token_id"][row] = forced
                records["flags"][row] |= IS_ADJUSTED
        return self._write_words(buffer, records, sequences, settings, positions, rows)

    def _write_words(
        self,
        buffer: "_Buffer",
        records: Records,
        sequences: Seq[Sequence],
        settings: "Seq[_Settings]",
        positions: Seq[int],
        rows: Seq[int],
    ) -> int:
        """Masks, bias and forbidden tokens of the rows that have some; how many words they take."""
        words, first = buffer.words, self._table.first_word
        end = first
        mask_words = -(-self._vocab_size // 32)
        for row in rows:
            sequence = sequences[row]
            if not sequence.adjusts_logits and sequence.token_mask is None:
                continue
            each, record = settings[row], records[row : row + 1]
            bias, forbidden, mask = each.bias, each.stop_ids, sequence.token_mask
            # Where a grammar allows nothing but the end, the end comes: its mask sees to `min_tokens`.
            if sequence.grammar is not None or positions[row] >= sequence.params.min_tokens:
                forbidden = forbidden[:0]
            if mask is not None:
                words[end : end + mask_words] = mask[:mask_words]
                record["mask_at"] = end
                end += mask_words
            record["bias_at"], record["num_bias"] = end, bias.size // 2
            words[end : end + bias.size] = bias
            end += bias.size
            record["forbidden_at"], record["num_forbidden"] = end, forbidden.size
            words[end : end + forbidden.size] = forbidden
            end += forbidden.size
            if mask is not None or bias.size or forbidden.size or sequence.params.penalises_tokens:
                record["flags"] |= IS_ADJUSTED
        return end - first


@dataclass(slots=True, eq=False)
class _Settings:
    """What stays the same as long as a sequence lives."""

    record: bytes
    flags: int
    num_top: int | None
    bias: Records  # int32: ids, then the bits of as many float32
    stop_ids: Records

    @classmethod
    def of(cls, sequence: Sequence) -> "_Settings":
        params = sequence.params
        record = cast("Records", neutral_row())
        for name in ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            record[name] = getattr(params, name)
        record["seed"] = sequence.sampling_seed
        record["temperature"] = max(params.temperature, MIN_TEMPERATURE)
        record["top_k"] = max(params.top_k, 0)
        flags = 0 if params.is_greedy else IS_RANDOM | (IS_FILTERED if is_filtered(params) else 0)
        flags |= 0 if params.logprobs is None else IS_REPORTED
        record["flags"] = flags
        bias = params.logit_bias or {}
        ids, values = np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)
        stop_ids = np.array(sorted(sequence.stop_token_ids) if params.min_tokens else [], np.int32)
        if stop_ids.size > MAX_FORBIDDEN:
            raise ValueError(f"min_tokens with {stop_ids.size} stop tokens: at most {MAX_FORBIDDEN} can be forbidden")
        return cls(record.tobytes(), flags, params.logprobs, np.concatenate((ids, values.view(np.int32))), stop_ids)


@dataclass(slots=True)
class _Buffer:
    """The host's side of one step: what is copied to the device, and what comes back."""

    table: RowTable
    results: Tensor
    records: Records
    words: Records
    num_written: int = 0
    event: torch.cuda.Event | None = None

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device) -> "_Buffer":
        is_pinned = device.type == "cuda"
        table = RowTable.empty(max_rows, vocab_size, torch.device("cpu"), pinned=is_pinned)
        results = torch.zeros((max_rows, RESULT_WORDS), dtype=torch.int32, pin_memory=is_pinned)
        records = table.buffer[: max_rows * (ROW_BYTES // 8)].numpy().view(ROW)
        return cls(table, results, records, table.int32.numpy())

    def write(self, settings: Seq[_Settings]) -> Records:
        """The rows' records, with all that a step does not change."""
        num_rows = len(settings)
        written = np.frombuffer(b"".join([each.record for each in settings]), ROW)
        self.records[:num_rows] = written
        if num_rows < self.num_written:
            self.records[num_rows : self.num_written] = cast("Records", neutral_row())
        self.num_written = num_rows
        return self.records[:num_rows]

    def mark(self, device: torch.device) -> None:
        """Remember what has been launched until now."""
        if device.type == "cuda":
            self.event = torch.cuda.Event() if self.event is None else self.event
            self.event.record()

    def wait(self) -> None:
        """Until all that was launched before the last mark is done."""
        if self.event is not None:
            self.event.synchronize()


@dataclass(frozen=True, slots=True)
class _Step:
    num_top: list[int | None]
    needs: Needs
    buffer: _Buffer


def _logprobs(results: Records, num_top: Seq[int | None], most: int) -> list[TokenLogprobs | None]:
    """Of the rows that report them, each with its own number of likeliest tokens, at most `most`."""
    floats = results.view(np.float32)
    chosen = cast("list[float]", floats[:, 1].tolist())
    ids = cast("list[list[int]]", results[:, 2 : 2 + most].tolist())
    values = cast("list[list[float]]", floats[:, 2 + MAX_LOGPROBS : 2 + MAX_LOGPROBS + most].tolist())
    return [
        None if count is None else TokenLogprobs(logprob, tuple(map(TopLogprob, row_ids[:count], row_values[:count])))
        for count, logprob, row_ids, row_values in zip(num_top, chosen, ids, values, strict=True)
    ]


def _kernels(device: torch.device) -> Callable[..., None]:
    """`choose_tokens` for a device; Triton is imported only where it is used."""
    runs_triton = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    name = "triton" if runs_triton else "reference"
    return importlib.import_module(f"deepseek_engine.kernels.{name}.sampling").choose_tokens
