"""Any checkpoint that the engine reads to a folder of safetensors with INT8 weights, tensor by tensor."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from deepseek_engine.conversion.companions import (
    config_fields,
    int8_quantization_config,
    write_companions,
)
from deepseek_engine.conversion.json_file import write_json
from deepseek_engine.conversion.new_folder import check_free, new_folder
from deepseek_engine.conversion.plan import FLOAT32_BYTES, Piece, kept_modules, pieces_of
from deepseek_engine.conversion.report import ConversionReport
from deepseek_engine.conversion.shards import ShardWriter
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.gguf.checkpoint import GGUFCheckpoint
from deepseek_engine.model_config import ModelConfig
from deepseek_engine.model_runner import open_checkpoint
from deepseek_engine.model_source import resolve_model
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.quantization.encoded import EncodedTensor, Int8Rows, copy_into, row_parts
from deepseek_engine.quantization.int8 import dequantize_rows, quantize_rows
from deepseek_engine.weights import CheckpointSource, check_tensor, matched_destinations


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """What to write, and where.

    Attributes:
        model: a folder, a `.gguf` file, a built-in name or a hub id.
        out: a folder that does not exist, or is empty.
        max_shard_bytes: of a file of weights; about so much is in memory at once.
        dtype: of tensors that are neither quantised nor stored as floats: those of a GGUF file, and FP8 weights that
            keep their precision. None is what config.json names, bfloat16 for a GGUF file.
        show_progress: None shows a bar on terminals only.
    """

    model: str
    out: Path
    max_shard_bytes: int
    dtype: torch.dtype | None = None
    show_progress: bool | None = None


def write_int8_checkpoint(options: Int8Options) -> ConversionReport:
    """Write the checkpoint; its folder appears when all of it is there.

    Raises:
        ModelLoadError: the checkpoint is broken or not supported, or has weights that are not finite.
        ConversionError: there is something at `out`.
        OSError, SafetensorError: it cannot be written.
    """
    check_free(options.out)
    path = resolve_model(options.model)
    config, source = open_checkpoint(path)
    model = shape_of(config)
    fields = config_fields(path, source, _called(options.dtype or torch.bfloat16))
    fields["quantization_config"] = int8_quantization_config(kept_modules(model))
    decoded_dtype = options.dtype or _named_dtype(fields)
    report = ConversionReport(source=options.model, out=str(options.out))
    with new_folder(options.out) as folder:
        report.remarks += write_companions(path, folder, config.max_position_embeddings)
        write_json(folder / "config.json", fields)
        writer = ShardWriter(folder, options.max_shard_bytes)
        all_decoded = path.is_file()  # what a GGUF file is read as says nothing of how it is stored
        _write_tensors(model, source, writer, report, decoded_dtype, all_decoded=all_decoded, options=options)
        report.num_shards = len(writer.finish())
    report.bytes_after = writer.num_bytes
    if isinstance(source, GGUFCheckpoint):
        report.bytes_before = source.num_bytes
    return report


def shape_of(config: ModelConfig) -> Transformer:
    """The model without memory for its parameters."""
    with torch.device("meta"):
        return Transformer(config, 1, torch.float32)


def _write_tensors(
    model: Transformer,
    source: CheckpointSource,
    writer: ShardWriter,
    report: ConversionReport,
    decoded_dtype: torch.dtype,
    *,
    all_decoded: bool,
    options: Int8Options,
) -> None:
    destinations = matched_destinations(model, source.names())
    pieces = pieces_of(model, destinations)
    hide_bar = None if options.show_progress is None else not options.show_progress
    with tqdm(total=len(source.names()), unit="tensor", disable=hide_bar) as bar:
        for name, tensor in source.tensors():
            bar.update()
            if name not in destinations:
                report.num_left_behind += 1
                continue
            check_tensor(name, tensor, destinations[name])
            report.bytes_before += tensor.nbytes if isinstance(tensor, Tensor) else tensor.num_bytes
            report.bytes_float32 += tensor.shape.numel() * FLOAT32_BYTES
            for piece in pieces[name]:
                part = tensor[piece.index] if piece.index else tensor
                if piece.is_quantized:
                    _add_quantized(writer, report, piece, part)
                else:
                    dtype = decoded_dtype if all_decoded or not isinstance(part, Tensor) else part.dtype
                    writer.add(piece.name, _kept(part, dtype))
                    report.num_kept += 1


def _add_quantized(writer: ShardWriter, report: ConversionReport, piece: Piece, values: Tensor | EncodedTensor) -> None:
    rows, error = _quantize(values)
    if not math.isfinite(error):
        raise ModelLoadError(f"{piece.name} has values that are not finite")
    scale = rows.scale.unsqueeze(-1)
    writer.add(piece.name, rows.values)
    writer.add(f"{piece.name}_scale", scale)
    report.weight_errors[piece.name] = error
    report.num_quantized += 1
    report.quantized_bytes += rows.values.nbytes + scale.nbytes
    report.quantized_bytes_float32 += rows.values.numel() * FLOAT32_BYTES


def _quantize(values: Tensor | EncodedTensor) -> tuple[Int8Rows, float]:
    """The weight in INT8 and its relative RMS error; what is INT8 already stays as it is."""
    if isinstance(values, Int8Rows):
        return Int8Rows(values.values.clone(), values.scale.clone()), 0.0
    quantized: list[Tensor] = []
    scales: list[Tensor] = []
    squares = errors = 0.0
    for part in row_parts(values):
        rows, scale = quantize_rows(part)
        quantized.append(rows)
        scales.append(scale)
        squares += _sum_of_squares(part)
        errors += _sum_of_squares(dequantize_rows(rows, scale).sub_(part))
    whole = Int8Rows(torch.cat(quantized).view(values.shape), torch.cat(scales).view(values.shape[:-1]))
    return whole, (errors / squares) ** 0.5 if squares else 0.0


def _sum_of_squares(values: Tensor) -> float:
    return cast("Tensor", torch.linalg.vector_norm(values, dtype=torch.float64)).item() ** 2


def _kept(values: Tensor | EncodedTensor, dtype: torch.dtype) -> Tensor:
    """A copy, as the shard is written after the source's file may have been left."""
    copy = torch.empty(values.shape, dtype=dtype)
    copy_into(copy, values)
    return copy


def _named_dtype(fields: dict[str, object]) -> torch.dtype:
    name = fields.get("dtype") or fields.get("torch_dtype")
    known = {_called(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    return known.get(str(name), torch.bfloat16)


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
