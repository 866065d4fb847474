"""`deepseek-server quantize IN OUT`: a checkpoint to one with INT8 weights, in a format that others read too."""

import argparse
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from safetensors import SafetensorError

from deepseek_engine.byte_sizes import parse_bytes
from deepseek_engine.config import DTYPES
from deepseek_engine.conversion.int8_checkpoint import Int8Options, write_int8_checkpoint
from deepseek_engine.conversion.json_file import write_json
from deepseek_engine.conversion.new_folder import check_free
from deepseek_engine.conversion.output_errors import BUILT_IN_TEXT, measure_output_errors, text_tokens
from deepseek_engine.conversion.report import ConversionReport
from deepseek_engine.errors import ConversionError, EngineError

DEFAULT_SHARD_SIZE: Final = "4GiB"
MIN_SHARD_BYTES: Final = 1024
MAX_TEXT_BYTES: Final = 2**20
"""Far beyond the tokens that are measured."""
_INTERRUPTED: Final = 130
_TERMINATED: Final = 143


def run_quantize(arguments: Sequence[str]) -> int:
    """Convert as the arguments say; the process's exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _termination_as_exit():
            report = _convert(options)
        sys.stdout.write("".join(f"{line}\n" for line in report.lines()))
        if options.report is not None:
            write_json(options.report, report.as_json())
    except (EngineError, OSError, SafetensorError) as error:
        sys.stderr.write(f"deepseek-server quantize: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("deepseek-server quantize: interrupted\n")
        return _INTERRUPTED
    return 0


def _convert(options: argparse.Namespace) -> ConversionReport:
    out = options.out.expanduser().resolve()
    check_free(out)  # before a model is downloaded or read
    if options.report is not None and not options.report.parent.is_dir():
        raise ConversionError(f"--report {options.report}: there is no folder {options.report.parent}")
    text, text_name = _text(options)
    token_ids = None if text is None else text_tokens(options.model, text)
    report = write_int8_checkpoint(
        Int8Options(
            model=options.model,
            out=out,
            max_shard_bytes=options.max_shard_size,
            dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        )
    )
    if token_ids is not None:
        report.output_errors = measure_output_errors(options.model, out, token_ids, text_name)
    return report


def _text(options: argparse.Namespace) -> tuple[str | None, str]:
    """What to measure outputs on, and what it is called."""
    if options.calibrate_text is None:
        return (BUILT_IN_TEXT if options.calibrate else None), "built-in"
    with options.calibrate_text.open("rb") as file:
        return file.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace"), options.calibrate_text.name


@contextmanager
def _termination_as_exit() -> Generator[None]:
    """SIGTERM leaves by an exception, so that what was begun is cleared away, as after Ctrl-C."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepseek-server quantize",
        description="Write a checkpoint with INT8 weights in the format of compressed-tensors (W8A8: a scale for each "
        "output channel, dynamic activations for each token). It gives the logits of --quantization int8.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="IN", help="folder of safetensors (FP8 too), .gguf file, built-in name, or hub id"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; new, or empty")
    parser.add_argument(
        "--max-shard-size",
        type=_shard_size,
        default=DEFAULT_SHARD_SIZE,
        metavar="BYTES",
        help=f"of a file of weights, and about the memory that it takes (default {DEFAULT_SHARD_SIZE})",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of what keeps its precision but is not stored as floats (a GGUF file's tensors, FP8 weights); auto is "
        "what config.json names, else bfloat16",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure the error of each layer's output on a built-in text; takes the memory of the model in float32",
    )
    parser.add_argument("--calibrate-text", type=Path, metavar="FILE", help="the same on a text of your own")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write sizes and every error to a JSON file")
    return parser


def _shard_size(text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if size < MIN_SHARD_BYTES:
        raise argparse.ArgumentTypeError(f"{text} is less than {MIN_SHARD_BYTES} bytes")
    return size
