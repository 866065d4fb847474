"""What the engine asks of a model runner; tests give it a fake one, so that scheduling is checked without torch."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from deepseek_engine.prompt_reading import PromptPart
from deepseek_engine.sequence import SampledToken, ScheduledSequence, Sequence

Logits = TypeVar("Logits")
Step = TypeVar("Step", bound="Launched")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """What was loaded, and how much of it there is.

    Attributes:
        max_model_len: context in tokens, prompt and answer together.
        vocab_size: token ids are below this.
        num_blocks: blocks of the KV cache.
        block_size: tokens a block.
        dtype: of weights, and of the KV cache unless that is INT8, by torch's name.
        device: `cpu` or `cuda`.
        weight_bytes_by_dtype: `weight_bytes`, by torch's name of the type.
        kernels: which kernels serve which part of a step.
        hidden_size: numbers of an embedding.
        max_prefix_len: tokens of the longest prompt whose tokens may attend to each other in both directions; None
            where prompts are causal.
        max_draft_rows: rows that a step with drafts samples at most; None where any number is as good.
        drafts_beside_prompts: whether a step with chunks of prompts may have drafts.
    """

    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    dtype: str
    device: str
    weight_bytes: int
    kv_cache_bytes: int
    hidden_size: int = 0
    max_prefix_len: int | None = None
    max_draft_rows: int | None = None
    drafts_beside_prompts: bool = True
    weight_bytes_by_dtype: dict[str, int] = field(default_factory=dict[str, int])
    kernels: dict[str, str] = field(default_factory=dict[str, str])


class AdapterHost(Protocol):
    """Reads LoRA adapters and keeps them for the steps, each under a number above 0."""

    def read(self, path: str) -> Any:
        """An adapter's content, with `max_rank` and `num_bytes`; called from another thread.

        Raises:
            AdapterError: it is no adapter for this model.
        """
        ...

    def install(self, adapter_id: int, adapter: Any) -> None:
        """Keep what `read` gave: sequences with this `adapter_id` may come from now on."""
        ...

    def remove(self, adapter_id: int) -> None:
        """Drop it: no sequence has this `adapter_id` any more."""
        ...


class Launched(Protocol):
    """A step that the device has been given."""

    def wait(self) -> list[SampledToken]:
        """Wait for it; one token for each sequence that needed one, in the batch's order. Called once.

        Raises:
            Exception: whatever went wrong in it; what it has written is written again then.
        """
        ...


class Launcher(Protocol[Step]):
    """A runner's way to compute a step while the host takes up the one before and prepares the one after.

    Launched steps take effect in the order in which they are launched, before any later `forward`, and at most two of
    them are under way. Batches that need anything between forward and sampling are not launched: those with drafts,
    grammar masks, readings of prompts, or a forced token.
    """

    @property
    def penalises_on_host(self) -> bool:
        """Whether penalties are counted from `token_ids`, so that every token has to be known before the next."""
        ...

    def launch(self, batch: Seq[ScheduledSequence], previous: Step | None) -> Step:
        """Start to compute the batch and to sample its tokens, without waiting for either.

        What it says of the batch's sequences holds during the call only: their tokens, blocks and counts move on then,
        and some of them may end; their rows are computed all the same, and what comes of them is dropped.

        Args:
            batch: a sequence whose next input is PENDING_TOKEN_ID takes it from its row of `previous`.
            previous: the step before, if its tokens have not been taken up.

        Raises:
            Exception: nothing was launched; `previous` is not affected.
        """
        ...


class Drafter(Protocol):
    """A runner's way to guess tokens with the model itself, from hidden states that `forward` has left with it."""

    def draft(self, wanted: Seq[tuple[Sequence, int]]) -> list[list[int]]:
        """Guess the tokens behind each sequence's last one.

        Called between steps. What it writes to the cache lies in the last token's slot and those of the drafts, is its
        own, and is written again by the step that computes them.

        Args:
            wanted: sequences of two tokens or more, of which all but the last are computed, and how many guesses each
                gets; there are slots for all of them.
        """
        ...


class Runner(Protocol[Logits]):
    """Turns a scheduled batch into logits, and logits into tokens.

    The two are separate so that a grammar mask can be prepared on the host while `forward` runs on the device.
    """

    @property
    def info(self) -> RunnerInfo:
        """Fixed for the runner's life."""
        ...

    @property
    def adapters(self) -> AdapterHost | None:
        """Where adapters are kept; None where LoRA is off."""
        ...

    @property
    def launcher(self) -> Launcher[Any] | None:
        """How to compute without waiting; None where every step is `forward` and `sample`."""
        ...

    @property
    def drafter(self) -> Drafter | None:
        """How to guess tokens with the model; None where it has no layer for that, or none was asked for."""
        ...

    def forward(self, batch: Seq[ScheduledSequence]) -> Logits:
        """Compute the batch, drafts included, and write its keys and values to the cache.

        Returns:
            logits: a sequence that needs a token has `num_sampled_rows` rows, in the batch's order.
        """
        ...

    def read_prompts(self, batch: Seq[ScheduledSequence]) -> list[PromptPart]:
        """What the last `forward` says of each prompt with `read_positions`; called only where there is one."""
        ...

    def sample(self, logits: Logits, batch: Seq[ScheduledSequence]) -> list[SampledToken]:
        """One token for each row of logits, in their order; those behind drafts as if the drafts were accepted."""
        ...

    def free_caches(self) -> None:
        """Memory ran out: give back what is only kept for speed. No batch is under way."""
        ...

    @property
    def failure(self) -> str | None:
        """Why nothing can be computed any more; None while it can. Any thread may ask."""
        ...

    def close(self) -> None:
        """End what it has started outside of this process. A second call does nothing."""
        ...
