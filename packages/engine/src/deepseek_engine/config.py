"""How the engine runs: EngineConfig, given by the caller and the same for its life."""

from typing import Final

import msgspec

from deepseek_engine.errors import InvalidRequestError

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = (None, "int8")
DEVICES = ("auto", "cpu", "cuda")
KV_CACHE_DTYPES = ("auto", "int8")
ATTENTION_BACKENDS = ("auto", "triton", "flash")
FLASH_BLOCK_SIZE: Final = 256
"""flash-attn reads pages of this many tokens, or of a multiple."""
LINEAR_BACKENDS = ("auto", "triton", "bitsandbytes")
SPECULATIONS = (None, "ngram", "mtp")
PROMPT_ATTENTIONS = ("causal", "bidirectional")
NUM_DRAFTS: Final = {"ngram": 5, "mtp": 1}
"""Guesses of one sequence and step where the settings say nothing: an n-gram's cost nothing to make, and a model's
layer for multi-token prediction was trained for one token."""
MAX_DRAFTS: Final = 32
"""Draft tokens of one sequence and step, whatever the settings say."""

MAX_SECONDS: Final = 86400
"""Longest limit of time."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every choice of the engine core, with its default.

    Attributes:
        model: a folder of safetensors, a `.gguf` file, a built-in name (`smollm2`), a hub id (`org/name@revision`),
            or `shape:` and the name of a built-in shape (`shapes.py`), which has random weights.
        dtype: of weights and KV cache; `auto` is bfloat16 where the device computes it natively, else float32.
        quantization: `int8` stores the weights of attention and feed-forward as INT8 and multiplies in INT8; None keeps
            them as the checkpoint has them, which for an INT8 checkpoint is INT8.
        linear_backend: what multiplies the INT8 weights of dense layers on a GPU: our own kernels (`triton`), or the
            library `bitsandbytes`. `auto` is triton, the faster one.
        device: `auto` is the GPU where torch finds one, else the CPU.
        max_model_len: context in tokens; None is the checkpoint's own, at most 8192.
        max_num_seqs: sequences in one step at most (`--max-batch-size`).
        max_num_batched_tokens: the token budget of one step; longer prompts are prefilled in chunks of it.
        block_size: tokens a KV-cache block.
        kv_cache_dtype: `auto` keeps keys and values in `dtype`; `int8` as INT8 with a float32 scale for each token and
            head, about half of bfloat16's bytes: on GPUs, for grouped-query attention.
        attention_backend: of GPUs: `triton` are our kernels, `flash` is flash-attn 2 where it is installed, which reads
            blocks of 256 tokens or a multiple; `auto` is `triton`.
        kv_cache_memory_bytes: size of the KV cache, of each rank where there are several; None is room for max_num_seqs
            sequences of an eighth of the context, or one whole context if that is more, capped by a quarter of free
            memory.
        gpu_memory_utilization: share of a GPU's memory that weights, cache and steps may take together; the cache gets
            what is left, unless its size is given.
        num_kv_blocks: blocks of KV cache, instead of bytes.
        enable_prefix_caching: reuse the KV of equal prompt beginnings.
        max_waiting: requests that may wait for a place before new ones are refused.
        max_waiting_tokens: prompt tokens that may wait for their answers to begin before new requests are refused; one
            prompt alone is always taken.
        priority_ageing_steps: steps of waiting that raise a request by one level of priority.
        preempt_every_steps: put a decoding sequence back every so many steps, which changes no answer; for tests.
        prompt_attention: `bidirectional` lets a prompt's tokens see each other in both directions and the answer's see
            what came before them (prefix-LM), for models trained so; a prompt is then computed in one step and its KV
            is not reused by others. `causal` is every other model.
        tensor_parallel_size: ranks that share the model, each a process with a slice of every layer, and a GPU of its
            own where there are GPUs; 1 is this process alone.
        num_threads: CPU threads, shared by all ranks; None is one a core.
        speculation: `ngram` guesses tokens from what came before, `mtp` with the model's layer for multi-token
            prediction, and several are verified in one step, which changes no answer; None is off.
        num_speculative_tokens: guesses of one sequence and step at most; None is 5 for `ngram` and 1 for `mtp`.
        adaptive_speculation: fewer guesses, or none, where measured steps say that they do not pay.
        ngram_min: tokens that have to have come before for a guess.
        ngram_max: longest agreement that is looked for.
        enable_lora: whether requests may name LoRA adapters.
        max_loras: adapters in memory at once, and so in one batch.
        max_lora_rank: highest rank of an adapter.
        lora_modules: adapters to load at the start, name and folder.
        step_timeout_s: a step that lasts longer is taken to hang: the core writes its state to the log, and `/ready`
            says no. A false alarm does no other harm.
        step_exit_s: a step that lasts longer ends the core. Far above the longest real step: on two cores of a CPU, a
            prompt's 2048 tokens through a model of 8 G parameters in float32 are minutes.
        heartbeat_s: how often the core says that it is there.
    """

    model: str
    dtype: str = "auto"
    quantization: str | None = None
    linear_backend: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_dtype: str = "auto"
    attention_backend: str = "auto"
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    num_kv_blocks: int | None = None
    enable_prefix_caching: bool = True
    max_waiting: int = 1024
    max_waiting_tokens: int = 2**20
    priority_ageing_steps: int = 1000
    preempt_every_steps: int | None = None
    prompt_attention: str = "causal"
    tensor_parallel_size: int = 1
    num_threads: int | None = None
    speculation: str | None = None
    num_speculative_tokens: int | None = None
    adaptive_speculation: bool = True
    ngram_min: int = 2
    ngram_max: int = 4
    enable_lora: bool = False
    max_loras: int = 8
    max_lora_rank: int = 64
    lora_modules: tuple[tuple[str, str], ...] = ()
    step_timeout_s: float = 60.0
    step_exit_s: float = 600.0
    heartbeat_s: float = 1.0

    def __post_init__(self) -> None:
        choices = (("dtype", DTYPES), ("quantization", QUANTIZATIONS), ("device", DEVICES))
        others = (("speculation", SPECULATIONS), ("prompt_attention", PROMPT_ATTENTIONS))
        backends = (("attention_backend", ATTENTION_BACKENDS), ("linear_backend", LINEAR_BACKENDS))
        for name, allowed in (*choices, *others, *backends, ("kv_cache_dtype", KV_CACHE_DTYPES)):
            if getattr(self, name) not in allowed:
                raise InvalidRequestError(
                    f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(str, allowed))}", param=name
                )
        positive = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes")
        queue = ("max_waiting", "max_waiting_tokens", "priority_ageing_steps", "preempt_every_steps")
        loras = ("max_loras", "max_lora_rank")
        speculative = ("num_speculative_tokens", "ngram_min", "ngram_max")
        for name in (*positive, *queue, *speculative, "num_kv_blocks", "num_threads", "tensor_parallel_size", *loras):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequestError(f"{name}={value}: it must be at least 1", param=name)
        for name in ("step_timeout_s", "step_exit_s", "heartbeat_s"):
            if not 0 < getattr(self, name) <= MAX_SECONDS:
                raise InvalidRequestError(
                    f"{name}={getattr(self, name)}: it must be above 0 and at most {MAX_SECONDS}", param=name
                )
        self._check_together()

    def _check_together(self) -> None:
        """Refuse values that are right by themselves and not beside others."""
        if not 0 < self.gpu_memory_utilization <= 1:
            raise InvalidRequestError(
                f"gpu_memory_utilization={self.gpu_memory_utilization:g}: it must be above 0 and at most 1",
                param="gpu_memory_utilization",
            )
        if self.step_exit_s < self.step_timeout_s:
            raise InvalidRequestError(
                f"step_exit_s={self.step_exit_s:g} is below step_timeout_s={self.step_timeout_s:g}: a core writes down "
                "what hangs before it ends",
                param="step_exit_s",
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidRequestError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is below max_num_seqs={self.max_num_seqs}: "
                "every running sequence needs room for one token a step",
                param="max_num_batched_tokens",
            )
        self._check_speculation()
        if self.attention_backend == "flash":
            self._check_flash()
        if self.lora_modules and not self.enable_lora:
            raise InvalidRequestError("lora_modules names adapters, but enable_lora is off", param="enable_lora")

    @property
    def num_drafts(self) -> int:
        """Guesses of one sequence and step at most; 0 without speculation."""
        if self.speculation is None:
            return 0
        return self.num_speculative_tokens or NUM_DRAFTS[self.speculation]

    def _check_flash(self) -> None:
        """Refuse what flash-attn does not compute: nothing else takes its place unasked."""
        size = FLASH_BLOCK_SIZE
        needs = (
            ("block_size", self.block_size % size == 0, size, f"it reads blocks of {size} tokens or a multiple"),
            ("dtype", self.dtype in ("auto", "bfloat16"), "bfloat16", "it computes in 16 bits"),
            ("kv_cache_dtype", self.kv_cache_dtype == "auto", "auto", "it reads no quantised cache"),
            (
                "prompt_attention", self.prompt_attention == "causal", "causal",
                "it has no mask for prompts that see themselves in both directions",
            ),
        )  # fmt: skip
        for name, is_met, value, reason in needs:
            if not is_met:
                raise InvalidRequestError(
                    f"{name}={getattr(self, name)!r} with attention_backend='flash': {reason}; use {name}={value!r} or "
                    "attention_backend='triton'",
                    param=name,
                )

    def _check_speculation(self) -> None:
        if self.num_speculative_tokens is not None and self.num_speculative_tokens > MAX_DRAFTS:
            raise InvalidRequestError(
                f"num_speculative_tokens={self.num_speculative_tokens}: at most {MAX_DRAFTS} are verified in one step",
                param="num_speculative_tokens",
            )
        if self.speculation == "mtp" and self.tensor_parallel_size > 1:
            raise InvalidRequestError(
                f"speculation='mtp' is not supported with tensor_parallel_size={self.tensor_parallel_size}: leave out "
                "one of the two, or use speculation='ngram'",
                param="speculation",
            )
        if self.ngram_min > self.ngram_max:
            raise InvalidRequestError(
                f"ngram_min={self.ngram_min} is above ngram_max={self.ngram_max}", param="ngram_min"
            )
