"""Every knob of the server: ENGINE_* variables, overridden by the command line."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from deepseek_engine.byte_sizes import parse_bytes
from deepseek_engine.chat.selection import CHAT_FORMATS
from deepseek_engine.config import MAX_SECONDS, EngineConfig
from deepseek_engine.lora.directory import check_adapter_name
from deepseek_engine.model_source import DEFAULT_MODEL, model_display_name
from deepseek_engine.request_log.log_file import DEFAULT_MAX_BYTES, MIN_MAX_BYTES


class ServerSettings(BaseSettings):
    """Settings of `deepseek-server`; the variable of `port` is ENGINE_PORT, its flag is `--port`."""

    model_config = SettingsConfigDict(env_prefix="ENGINE_", extra="ignore", frozen=True, protected_namespaces=())

    model_path: str = Field(
        DEFAULT_MODEL, description="folder of safetensors, .gguf file, built-in name, or hub id: org/name@revision"
    )
    served_model_name: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="names that requests may use, the first in answers; the model's own name if not given"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of weights and KV cache")
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        "auto", description="int8 takes about half of bfloat16's memory; on GPUs, for grouped-query attention"
    )
    attention_backend: Literal["auto", "triton", "flash"] = Field(
        "auto",
        description="on GPUs: our Triton kernels (auto), or flash-attn 2 where it is installed, with --block-size 256",
    )
    block_size: int = Field(16, ge=1, description="tokens in a block of the KV cache")
    quantization: Literal["int8"] | None = Field(None, description="store and multiply weights as int8")
    linear_backend: Literal["auto", "triton", "bitsandbytes"] = Field(
        "auto", description="multiplies the INT8 weights of dense layers on GPUs; auto is triton, the faster one"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` is the GPU where torch finds one")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory for weights, steps and KV cache together"
    )
    max_model_len: int | None = Field(None, ge=1, description="context in tokens; the checkpoint's own, at most 8192")
    max_batch_size: int = Field(32, ge=1, description="sequences in one step at most")
    max_num_batched_tokens: int = Field(2048, ge=1, description="tokens in one step at most")
    kv_cache_memory: int | None = Field(None, ge=1, description="bytes of KV cache, or with a unit: 2GiB")
    prefix_cache: bool = Field(True, description="reuse the KV of equal prompt beginnings")
    max_waiting: int = Field(1024, ge=1, description="requests that may wait before new ones get 503")
    max_waiting_tokens: int = Field(2**20, ge=1, description="prompt tokens that may wait before new requests get 503")
    min_priority: int = Field(
        0, ge=-100, le=100, description="lowest number, so most urgent priority, that a request may ask for"
    )
    max_deadline_s: float | None = Field(
        None, gt=0, le=86400, description="most seconds that a request may take; what it has by then is its answer"
    )
    prompt_attention: Literal["causal", "bidirectional"] = Field(
        "causal", description="bidirectional for models whose prompts see themselves in both directions (prefix-LM)"
    )
    speculation: Literal["ngram", "mtp"] | None = Field(
        None,
        description="guess tokens, several a step, from what came before or with the model's own layer for that (mtp); "
        "answers stay the same",
    )
    num_speculative_tokens: int | None = Field(
        None, ge=1, description="guesses of one sequence and step at most; 5 for ngram, 1 for mtp"
    )
    speculation_adaptive: bool = Field(
        True, description="fewer guesses, or none, where measured steps say that they do not pay"
    )
    speculation_ngram_min: int = Field(2, ge=1, description="tokens that have to have come before for a guess")
    speculation_ngram_max: int = Field(4, ge=1, description="longest agreement that is looked for")
    pooling: Literal["mean", "last"] = Field("mean", description="how embeddings are made, if a request does not say")
    tensor_parallel_size: int = Field(
        1, ge=1, description="processes that share the model, each with a slice of every layer"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads, shared by all processes of the model; one a core")

    enable_lora: bool = Field(False, description="serve LoRA adapters beside the model, as model:adapter")
    max_loras: int = Field(8, ge=1, description="adapters in memory at once, and so in one batch")
    max_lora_rank: int = Field(64, ge=1, description="highest rank of an adapter")
    lora: Annotated[tuple[str, ...], NoDecode] = Field((), description="an adapter to load at the start: NAME=FOLDER")
    lora_dir: str | None = Field(None, description="folder whose adapters may be loaded at run time")
    allow_lora_loading: bool = Field(
        False, description="let callers load adapters of --lora-dir although there is no --api-key"
    )

    chat_template: str | None = Field(None, description="file of a Jinja chat template to use for the checkpoint's")
    chat_format: str = Field(
        "auto", description=f"how the model writes reasoning and tool calls: {', '.join(CHAT_FORMATS)}"
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 is any free one")
    uds: str | None = Field(None, description="unix socket to listen on instead of host and port")
    api_key: SecretStr | None = Field(None, description="bearer key that callers must send")
    max_body_bytes: int = Field(4 * 2**20, ge=1, description="largest request body")

    temperature: float = Field(1.0, description="a request's temperature if it gives none")
    top_p: float = Field(1.0, description="a request's top_p if it gives none")
    repetition_penalty: float = Field(1.0, description="a request's repetition_penalty if it gives none")
    max_tokens: int | None = Field(
        None, ge=1, description="a request's max_tokens if it gives none; 512 for generate, else what the context holds"
    )

    grammar_timeout_s: float = Field(10.0, gt=0, description="seconds to compile a request's schema or grammar at most")

    keep_alive_s: float = Field(15.0, gt=0, description="seconds of silence before a stream carries a comment")
    drain_timeout_s: float = Field(30.0, ge=0, description="seconds that running requests have after SIGTERM")
    core_death_grace_s: float = Field(3.0, ge=0, description="seconds of 503 answers before the exit, if the core dies")
    step_timeout_s: float = Field(
        60.0, gt=0, le=MAX_SECONDS, description="seconds after which a step is taken to hang and state is logged"
    )
    step_exit_s: float = Field(
        600.0, gt=0, le=MAX_SECONDS, description="seconds after which a step that hangs ends the server"
    )
    request_log: str | None = Field(
        None,
        description="file to write every request and its answers to, as token ids, for `deepseek-bench replay`; off by "
        "default, as whoever reads it reads what was asked and answered",
    )
    request_log_max_bytes: int = Field(
        DEFAULT_MAX_BYTES, ge=MIN_MAX_BYTES, description="of the request log and its older parts, or with a unit: 1GiB"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe lines to log")

    @field_validator("served_model_name", "lora", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("kv_cache_memory", "request_log_max_bytes", mode="before")
    @classmethod
    def _parse_bytes(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("lora")
    @classmethod
    def _check_adapters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            name, equals, folder = entry.partition("=")
            if not equals or not folder:
                raise ValueError(f"{entry!r} is not NAME=FOLDER")
            check_adapter_name(name)
        return value

    @field_validator("chat_format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value not in CHAT_FORMATS:
            raise ValueError(f"{value!r} is unknown: use one of {', '.join(CHAT_FORMATS)}")
        return value

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that a request may give as `model`; answers carry the first when it gives none."""
        return self.served_model_name or (model_display_name(self.model_path),)

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's part.

        Raises:
            InvalidRequestError: the values do not fit together.
        """
        return EngineConfig(
            model=self.model_path,
            dtype=self.dtype,
            quantization=self.quantization,
            linear_backend=self.linear_backend,
            kv_cache_dtype=self.kv_cache_dtype,
            attention_backend=self.attention_backend,
            block_size=self.block_size,
            device=self.device,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_batch_size,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_cache_memory_bytes=self.kv_cache_memory,
            enable_prefix_caching=self.prefix_cache,
            max_waiting=self.max_waiting,
            max_waiting_tokens=self.max_waiting_tokens,
            prompt_attention=self.prompt_attention,
            tensor_parallel_size=self.tensor_parallel_size,
            num_threads=self.threads,
            speculation=self.speculation,
            num_speculative_tokens=self.num_speculative_tokens,
            adaptive_speculation=self.speculation_adaptive,
            ngram_min=self.speculation_ngram_min,
            ngram_max=self.speculation_ngram_max,
            enable_lora=self.enable_lora,
            max_loras=self.max_loras,
            max_lora_rank=self.max_lora_rank,
            step_timeout_s=self.step_timeout_s,
            step_exit_s=self.step_exit_s,
            lora_modules=tuple((name, folder) for name, _, folder in (entry.partition("=") for entry in self.lora)),
        )
