"""Steps that no request asked for, one for every kernel that a request may need: nothing is compiled while serving.

Kernels differ by classes of token counts (powers of two and multiples of them, by and large), by what kinds of rows a
step has, and by what the sampler is asked for; see the `choose_*` functions beside the kernels.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Final

from deepseek_engine.config import EngineConfig
from deepseek_engine.kernels.latent_prefill_plan import WORKSPACE_BYTES, absorbed_limit
from deepseek_engine.kernels.sampling_rows import Needs
from deepseek_engine.model_config import LatentConfig
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.sequence import ScheduledSequence, Sequence

SIZES_AN_OCTAVE: Final = 4
FEW_SEQUENCES: Final = 256
"""Prompts of a step up to which attention is one kernel; see `prefill_attention`."""
FLOAT_BYTES: Final = 2

NEEDS: Final = (
    Needs(adjust=False, random=False, filter=False, report=True),
    *(
        Needs(adjust=adjust, random=random, filter=filters, report=False)
        for adjust in (False, True)
        for random, filters in ((True, True), (True, False), (False, False))
    ),
)
"""What differs in launches of the sampler, what takes longest to compile first; a report is launches of its own."""


def token_counts(most: int) -> list[int]:
    """Counts from 1 to `most`, close enough that each class of sizes has one."""
    counts = {1, 2, 3, 4, 5, 6, 7, most}
    base = 8
    while base < most:
        steps = range(SIZES_AN_OCTAVE)
        counts |= {base - 1, base, base + 1, *(base + base * step // SIZES_AN_OCTAVE for step in steps)}
        base *= 2
    return sorted(count for count in counts if count <= most)


def rehearsed_steps(
    config: EngineConfig, max_model_len: int, max_rows: int, latent: LatentConfig | None
) -> Iterator[list[ScheduledSequence]]:
    """Batches, of which every kernel of the decoder computes a part; they only use block 0.

    Args:
        config: says what steps there may be.
        max_model_len: tokens of a sequence.
        max_rows: single-token rows of a step at most.
        latent: of models with latent attention.
    """
    make = _Maker(config, max_model_len)
    most = config.max_num_batched_tokens + max_rows  # a graph's padding comes on top
    for count in token_counts(most):
        if count <= max_rows:
            yield [make.prompt(1) for _ in range(count)]
            yield [make.prompt(2), *(make.prompt(1) for _ in range(count))]  # decodes beside a chunk are other launches
        if count > 1:
            yield make.prompts(count)
    for count in (9, 33, 65):
        yield [make.prompt(count), make.prompt(1)]
        if config.prompt_attention == "bidirectional":
            yield [make.prompt(count, prefix_len=count)]
    sequences = 2 * FEW_SEQUENCES
    while sequences < 2 * min(config.max_num_seqs, most // 2):
        yield [make.prompt(2) for _ in range(min(sequences, config.max_num_seqs, most // 2))]
        sequences *= 2
    if config.speculation is not None and max_model_len > config.num_drafts:
        yield [make.prompt(1, draft_token_ids=(0,))]
    if latent is not None:
        yield from _latent_steps(make, config, latent)


def _latent_steps(make: "_Maker", config: EngineConfig, latent: LatentConfig) -> Iterator[list[ScheduledSequence]]:
    """Chunks behind cached tokens: few attend as decoding rows do, many with all keys expanded, in passes."""
    limit = absorbed_limit(latent, FLOAT_BYTES)
    for count in (2, 3, 4, 5, 17, 65):
        yield [make.prompt(count, cached=make.max_len - count)]
        yield [make.prompt(count, cached=make.max_len - count), make.prompt(limit + 1), make.prompt(1)]
    key_bytes = latent.num_attention_heads * (latent.qk_nope_head_dim + latent.v_head_dim) * FLOAT_BYTES
    capacity = WORKSPACE_BYTES // key_bytes
    count = capacity // make.max_len + 1
    if count > config.max_num_seqs:
        return
    first_context = make.max_len if capacity % make.max_len else make.max_len - 1
    for longest in (limit + 1, 65):  # the last sequence does not fit the first pass whole
        chunks = [max(longest, limit + 1), *[limit + 1] * (count - 1)]
        contexts = [first_context, *[make.max_len] * (count - 1)]
        if sum(chunks) <= config.max_num_batched_tokens:
            yield [make.prompt(new, cached=all_ - new) for new, all_ in zip(chunks, contexts, strict=True)]


class _Maker:
    """Makes sequences within the bounds of a start."""

    def __init__(self, config: EngineConfig, max_model_len: int) -> None:
        self._config, self.max_len = config, max_model_len

    def prompt(
        self, count: int, *, cached: int = 0, prefix_len: int = 0, draft_token_ids: Seq[int] = ()
    ) -> ScheduledSequence:
        """The last `count` tokens of a prompt of which so many are cached; fewer if it has no room for them."""
        count = min(count, self.max_len)
        cached = min(max(cached, 0), self.max_len - count)
        return warm_up_prompt(
            count, self._config.block_size, cached=cached, prefix_len=prefix_len, draft_token_ids=draft_token_ids
        )

    def prompts(self, num_tokens: int) -> list[ScheduledSequence]:
        """Prompts of so many tokens together, as few as it takes."""
        batch: list[ScheduledSequence] = []
        while num_tokens > 0:
            batch.append(self.prompt(num_tokens))
            num_tokens -= batch[-1].num_new_tokens
        return batch


def warm_up_prompt(
    count: int, block_size: int, *, cached: int = 0, prefix_len: int = 0, draft_token_ids: Seq[int] = ()
) -> ScheduledSequence:
    """A step of a prompt that nobody asked for; all its blocks are the first one."""
    params = SamplingParams(temperature=0.7, top_p=0.9, top_k=50, seed=0)
    sequence = Sequence("warm-up", 0, [0] * (cached + count), params, 0, prefix_len=prefix_len)
    sequence.num_computed_tokens = cached
    sequence.block_table = [0] * ((cached + count + len(draft_token_ids)) // block_size + 1)
    return ScheduledSequence(sequence, count, tuple(draft_token_ids))
