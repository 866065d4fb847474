"""Messages between the API process and the core process: typed, msgpack-encoded, never pickled.

To the core: one `Configure`, then `Submit`, `Cancel`, `LoadAdapter` and `UnloadAdapter`. From the core: one `Ready` or
`StartFailed`, then a `StepOutputs` for each step and a `Heartbeat` about once a second.

All of it is bounded. A frame is (`framing.MAX_FRAME_BYTES`). What can wait in the core's inbox is what the API process
lets in (`AsyncEngine`): `max_num_seqs + max_waiting` requests and the tokens of their prompts, a cancel for each answer
of theirs, and `lora.directory.MAX_CALLS` calls about adapters. What the core says waits in the socket, and the core
with it, or in a request's mailbox, where the tokens that the request may have bound it.
"""

from typing import Final, Literal

import msgspec

from deepseek_engine.config import EngineConfig
from deepseek_engine.grammar.source import GrammarUse
from deepseek_engine.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]

STEP_SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Upper ends of the buckets in which a core counts its steps by how long they take."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages; the tag is the class name."""


class Configure(Message, frozen=True):
    """The first message to the core: what to load and how to run it."""

    config: EngineConfig


class ThinkingMarkers(msgspec.Struct, frozen=True):
    """The tokens around a model's reasoning.

    Attributes:
        end_token_ids: close it, as in the encoding of `</think>`; at least one.
        start_token_ids: open it where the model opens it itself; empty where only the prompt does.
        is_open: whether the prompt ends inside reasoning, as DeepSeek-R1's template leaves it.
    """

    end_token_ids: tuple[int, ...]
    start_token_ids: tuple[int, ...] = ()
    is_open: bool = False


class EmbedParams(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a prompt's embedding instead of an answer: its hidden states after the last norm, pooled.

    Attributes:
        pooling: `mean` of all tokens, or the `last` one's.
        normalise: scale it to length 1, so that dot products are cosines.
    """

    pooling: Literal["mean", "last"] = "mean"
    normalise: bool = True


class Submit(Message, frozen=True):
    """A request.

    Attributes:
        cache_salt: names its tenant, whose cached prefixes and share of service are its own.
        adapter: the name of a loaded LoRA adapter; None is the base model.
        grammar: what its answers have to follow.
        embed: asks for the prompt's embedding; its `max_tokens` is 0.
        thinking: where reasoning is in its answers; None counts none, and `thinking_token_budget` is then refused.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    cache_salt: str = ""
    adapter: str | None = None
    grammar: GrammarUse | None = None
    thinking: ThinkingMarkers | None = None
    embed: EmbedParams | None = None


class Cancel(Message, frozen=True):
    """End a request, or one of its answers; the last delta of each says `abort`. Unknown ids are ignored."""

    request_id: str
    index: int | None = None


class LoadAdapter(Message, frozen=True):
    """Load a LoRA adapter under a name; its `AdapterReply` has the same call_id.

    `path` is a folder as PEFT saves it. With `replace`, an adapter of that name is replaced for requests to come.
    """

    call_id: int
    name: str
    path: str
    replace: bool = False


class UnloadAdapter(Message, frozen=True):
    """Forget an adapter; requests that use it go on to their ends."""

    call_id: int
    name: str


class AdapterInfo(msgspec.Struct, frozen=True):
    """A loaded adapter: the folder it came from, its highest rank, and the bytes that it takes in memory."""

    name: str
    path: str
    max_rank: int
    num_bytes: int


class AdapterReply(msgspec.Struct, frozen=True):
    """How a call ended: loaded, with what it is; failed, with the reason; or neither, after unloading."""

    call_id: int
    adapter: AdapterInfo | None = None
    error: str | None = None


class TopLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A candidate token and its log-probability under the unmodified distribution."""

    token_id: int
    logprob: float


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The chosen token's log-probability and the likeliest alternatives, likeliest first."""

    logprob: float
    top: tuple[TopLogprob, ...] = ()


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What one step added to one answer of a request.

    Attributes:
        token_ids: new tokens, in order; may be empty when `finish_reason` is set.
        logprobs: one entry a new token, when asked for.
        prompt_logprobs: of the next prompt tokens that were read, when asked for; the first prompt token has none. All
            answers of a request together get each one once.
        embedding: the prompt's, as little-endian float32, when asked for.
        finish_reason: set on the answer's last delta.
        stop_token_id: the token that ended it, where one did; it is also the last of `token_ids`.
        num_prompt_tokens: prompt tokens that the request's answers have processed together, so count it once a request:
            the whole prompt when a token exists, fewer after an early abort, 0 if it never started.
        num_cached_tokens: how many of those came from the prefix cache; also once a request.
        num_reasoning_tokens: tokens of reasoning in the answer so far, their markers not counted.
        error: what failed, when `finish_reason` is `error`.
        num_preemptions: on an answer's last delta: how often it was put back to make room.
        queue_s: on an answer's last delta: seconds until the request got its first place in a batch, or ended without.
        timed_out: whether the request's own deadline is what ended it; `finish_reason` is then `abort`.
        error_param: the request's field that is at fault, where it is the request's fault.
    """

    request_id: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: bytes | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0
    error: str | None = None
    num_preemptions: int = 0
    queue_s: float = 0.0
    timed_out: bool = False
    error_param: str | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State of the core after a step; totals count from its start.

    Attributes:
        num_running: answers that hold a place in the batch.
        num_waiting: answers that could run if there were room.
        num_waiting_tokens: tokens of those.
        num_free_blocks: blocks free to be used, those whose content is kept for reuse among them.
        num_prefix_queries: prompt tokens that were looked up in the prefix cache.
        num_prefix_hits: how many of those were found.
        max_step_tokens: the token budget of a step; lower than configured after memory ran out.
        num_draft_tokens: guessed tokens that were verified.
        num_accepted_tokens: how many of them were right, each a step saved for one sequence.
        num_guesses: that each sequence might have in the last step of decodes; 0 where they do not pay.
        num_off_steps: steps of decodes without guesses for that reason.
        num_adapters: LoRA adapters in memory.
        num_failed_steps: steps of which something could not be computed.
        num_oom_events: steps that memory did not suffice for, and that were made smaller.
        num_overlapped_steps: steps that were launched while the one before was under way.
        sync_points: steps that were not, on a runner that can, by what they had to wait for.
    """

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    num_preemptions: int
    num_steps: int
    num_waiting_tokens: int = 0
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    max_step_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_guesses: int = 0
    num_off_steps: int = 0
    num_adapters: int = 0
    num_failed_steps: int = 0
    num_oom_events: int = 0
    num_overlapped_steps: int = 0
    sync_points: dict[str, int] = {}


class KindTotals(msgspec.Struct, frozen=True):
    """Steps of one kind.

    Attributes:
        num_steps_in: how many took up to each of STEP_SECONDS_BUCKETS and more than the one before; the last, longer.
        seconds: of all of them.
        num_sequences, num_tokens: that they computed.
    """

    num_steps_in: tuple[int, ...]
    seconds: float
    num_sequences: int
    num_tokens: int


class StepTotals(msgspec.Struct, frozen=True):
    """Where the time of all steps has gone: by phase, and by whether they computed prompts, decoded, or both."""

    phase_seconds: dict[str, float]
    kinds: dict[str, KindTotals]


class GrammarTotals(msgspec.Struct, frozen=True):
    """Grammars that were compiled for answers, and how long that took, those among them that could not be."""

    num_compiled: int = 0
    compile_s: float = 0.0


class Heartbeat(Message, frozen=True, kw_only=True):
    """The core is there; sent every `EngineConfig.heartbeat_s`, also when idle and in the middle of a step.

    Attributes:
        step_s: how long the step under way has lasted; 0 between steps.
        num_dumps: how often the core has written its state to the log.
        rss_bytes, cpu_s: of the core process; 0 where the system does not say.
    """

    step_s: float
    num_dumps: int = 0
    rss_bytes: int = 0
    cpu_s: float = 0.0
    steps: StepTotals
    grammars: GrammarTotals = GrammarTotals()


class Ready(Message, frozen=True, kw_only=True):
    """The core is up."""

    max_model_len: int
    vocab_size: int
    hidden_size: int = 0
    num_blocks: int
    block_size: int
    dtype: str
    device: str
    weight_bytes: int
    weight_bytes_by_dtype: dict[str, int] = {}
    kernels: dict[str, str] = {}
    kv_cache_bytes: int
    max_prefix_len: int | None = None
    max_draft_rows: int | None = None
    drafts_beside_prompts: bool = True
    load_s: float
    adapters: tuple[AdapterInfo, ...] = ()


class StartFailed(Message, frozen=True):
    """The core could not start."""

    reason: str


class StepOutputs(Message, frozen=True):
    """All that one step has to say."""

    deltas: tuple[Delta, ...]
    stats: EngineStats
    replies: tuple[AdapterReply, ...] = ()


Work = Submit | Cancel | LoadAdapter | UnloadAdapter
ToCore = Configure | Work
FromCore = Ready | StartFailed | StepOutputs | Heartbeat
