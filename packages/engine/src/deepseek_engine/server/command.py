"""The command line: flags over ENGINE_* variables over defaults."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Final

import pydantic

import deepseek_engine
from deepseek_engine.errors import EngineError, InvalidRequestError
from deepseek_engine.event_loops import loop_factory
from deepseek_engine.sampling_params import SamplingParams
from deepseek_engine.server.listener import ListenError
from deepseek_engine.server.serve import serve
from deepseek_engine.server.settings import ServerSettings

# Flag, field of ServerSettings, its type, and more spellings of it.
_FLAGS: Final[tuple[tuple[str, str, type, tuple[str, ...]], ...]] = (
    ("--model-path", "model_path", str, ("--model",)),
    ("--max-batch-size", "max_batch_size", int, ("--batch-size",)),
    ("--dtype", "dtype", str, ()),
    ("--quantization", "quantization", str, ()),
    ("--linear-backend", "linear_backend", str, ()),
    ("--device", "device", str, ()),
    ("--gpu-memory-utilization", "gpu_memory_utilization", float, ()),
    ("--max-model-len", "max_model_len", int, ()),
    ("--max-num-batched-tokens", "max_num_batched_tokens", int, ()),
    ("--kv-cache-dtype", "kv_cache_dtype", str, ()),
    ("--attention-backend", "attention_backend", str, ()),
    ("--block-size", "block_size", int, ()),
    ("--kv-cache-memory", "kv_cache_memory", str, ()),
    ("--max-waiting", "max_waiting", int, ()),
    ("--max-waiting-tokens", "max_waiting_tokens", int, ()),
    ("--min-priority", "min_priority", int, ()),
    ("--max-deadline", "max_deadline_s", float, ()),
    ("--prompt-attention", "prompt_attention", str, ()),
    ("--speculation", "speculation", str, ()),
    ("--num-speculative-tokens", "num_speculative_tokens", int, ()),
    ("--speculation-ngram-min", "speculation_ngram_min", int, ()),
    ("--speculation-ngram-max", "speculation_ngram_max", int, ()),
    ("--pooling", "pooling", str, ()),
    ("--tensor-parallel-size", "tensor_parallel_size", int, ()),
    ("--threads", "threads", int, ()),
    ("--max-loras", "max_loras", int, ()),
    ("--max-lora-rank", "max_lora_rank", int, ()),
    ("--lora-dir", "lora_dir", str, ()),
    ("--chat-template", "chat_template", str, ()),
    ("--chat-format", "chat_format", str, ()),
    ("--host", "host", str, ()),
    ("--port", "port", int, ()),
    ("--uds", "uds", str, ()),
    ("--api-key", "api_key", str, ()),
    ("--temperature", "temperature", float, ()),
    ("--top-p", "top_p", float, ()),
    ("--repetition-penalty", "repetition_penalty", float, ()),
    ("--max-tokens", "max_tokens", int, ()),
    ("--grammar-timeout", "grammar_timeout_s", float, ()),
    ("--drain-timeout", "drain_timeout_s", float, ()),
    ("--step-timeout", "step_timeout_s", float, ()),
    ("--step-exit", "step_exit_s", float, ()),
    ("--request-log", "request_log", str, ()),
    ("--request-log-max-bytes", "request_log_max_bytes", str, ()),
    ("--log-level", "log_level", str, ()),
)


def run(arguments: Sequence[str]) -> int:
    """Serve as the arguments say; the process's exit status."""
    settings = parse_settings(arguments)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # our own lines say when it starts and stops
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(serve(settings))
    except (EngineError, ListenError) as error:
        sys.stderr.write(f"deepseek-server: {error}\n")
        return 1
    except KeyboardInterrupt:  # while the model was loading, before our own handlers
        return 130


def parse_settings(arguments: Sequence[str]) -> ServerSettings:
    """Settings from flags and variables; a bad one ends the process with its name."""
    parser = build_parser()
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        settings = ServerSettings(**given)
        # The defaults of requests are judged by what judges requests.
        SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            max_tokens=settings.max_tokens,
        )
        _ = settings.engine_config
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        parser.error(f"{_spelling(str(problem['loc'][0]))}: {problem['msg']}")
    except InvalidRequestError as error:
        parser.error(str(error))
    return settings


def build_parser() -> argparse.ArgumentParser:
    """The program's flags; `dest` is the field of `ServerSettings`, None where it was not given."""
    fields = ServerSettings.model_fields
    parser = argparse.ArgumentParser(
        prog="deepseek-server",
        # Above an error, all flags would hide what is wrong.
        usage="deepseek-server [options]; --help lists them\n       deepseek-server quantize IN OUT [options]",
        description="Serve a model over HTTP: /v1/generate, /v1/chat/completions, /v1/completions and more.",
        epilog="Every flag has a variable: --max-batch-size is ENGINE_MAX_BATCH_SIZE. Flags win. "
        "`deepseek-server quantize IN OUT` writes a checkpoint with INT8 weights.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {deepseek_engine.__version__}")
    for flag, name, kind, aliases in _FLAGS:
        field = fields[name]
        default = "" if field.default is None else f" (default {field.default})"
        parser.add_argument(
            flag, *aliases, dest=name, type=kind, help=f"{field.description}{default}".replace("%", "%%")
        )
    parser.add_argument(
        "--served-model-name", dest="served_model_name", nargs="+", help=fields["served_model_name"].description
    )
    for flag, name in (("--enable-lora", "enable_lora"), ("--allow-lora-loading", "allow_lora_loading")):
        parser.add_argument(flag, dest=name, action="store_const", const=True, help=fields[name].description)
    parser.add_argument(
        "--lora", dest="lora", action="append", metavar="NAME=FOLDER", help=f"{fields['lora'].description}; repeatable"
    )
    parser.add_argument(
        "--no-prefix-cache",
        dest="prefix_cache",
        action="store_const",
        const=False,
        help="do not reuse KV of equal prompts",
    )
    parser.add_argument(
        "--no-speculation-adaptive",
        dest="speculation_adaptive",
        action="store_const",
        const=False,
        help="guess as many tokens as may be, whether that pays or not",
    )
    return parser


def _spelling(name: str) -> str:
    flags = {field: flag for flag, field, _, _ in _FLAGS}
    return f"{flags.get(name, '--' + name.replace('_', '-'))} (ENGINE_{name.upper()})"
