"""Checkpoint tensors to parameters: every tensor must be claimed, every parameter filled, every shape equal."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from deepseek_engine.errors import ModelLoadError
from deepseek_engine.layers.linear import QuantizableModule
from deepseek_engine.load_report import LoadReport
from deepseek_engine.load_threads import load_threads
from deepseek_engine.models.names import Destination, Destinations, checkpoint_destinations, may_be_ignored
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.name_list import listed
from deepseek_engine.quantization.encoded import ALL, EncodedTensor, Index, copy_into, quantize_into

_MAX_VALUES: Final = 2**26
"""Of tensors that are read and not yet written, unless one alone has more: dequantised, these take 256 MB."""
_READABLE: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class CheckpointSource(Protocol):
    """Tensors by their Hugging Face names, from whatever file holds them."""

    def names(self) -> set[str]:
        """Every tensor's name, without reading data."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor | EncodedTensor]]:
        """Every tensor, one at a time, so that no second copy of the model is ever in memory."""
        ...


def load_weights(model: Transformer, source: CheckpointSource) -> LoadReport:
    """Fill the model's parameters from a checkpoint, with a progress bar on terminals.

    Raises:
        ModelLoadError: tensors are missing, unexpected, misshapen or of an unknown type; the message names them.
    """
    destinations = matched_destinations(model, source.names())
    num_bytes = sum(destination.tensor.nbytes for destination in destinations.values())
    bar = tqdm(total=num_bytes, unit="B", unit_scale=True, desc="loading", leave=False, disable=None)
    tensors = source.tensors()  # here, where torch has all its threads: sources take as many for their own work
    with bar, load_threads() as (pool, num_threads):
        under_way: deque[tuple[Future[int], int]] = deque()
        for name, tensor in tensors:
            destination = destinations.get(name)
            if destination is None:
                continue
            check_tensor(name, tensor, destination)
            size = tensor.shape.numel()
            while under_way and (len(under_way) > num_threads or sum(n for _, n in under_way) + size > _MAX_VALUES):
                bar.update(under_way.popleft()[0].result())
            under_way.append((pool.submit(_write, destination, tensor), size))
        for future, _ in under_way:
            bar.update(future.result())
    return LoadReport.of(model, len(destinations))


def matched_destinations(model: Transformer, names: set[str]) -> Destinations:
    """Where each tensor of a checkpoint goes, by name.

    Raises:
        ModelLoadError: the model lacks a place for a name, or a place lacks its tensor.
    """
    destinations = checkpoint_destinations(model, names)
    missing = destinations.keys() - names
    if missing:
        raise ModelLoadError(
            f"the checkpoint lacks {listed(missing)}: it is not complete, or its config.json is of another model"
        )
    extra = {name for name in names - destinations.keys() if not may_be_ignored(model, name)}
    if extra:
        raise ModelLoadError(f"the checkpoint has tensors that this architecture does not use: {listed(extra)}")
    return destinations


def check_tensor(name: str, tensor: Tensor | EncodedTensor, destination: Destination) -> None:
    """Raise ModelLoadError if a tensor is not of its place's shape, or its values have no known meaning."""
    wanted = destination.shape
    if wanted != tensor.shape:
        raise ModelLoadError(f"{name} has shape {list(tensor.shape)}: config.json asks for {list(wanted)}")
    if isinstance(tensor, Tensor) and tensor.dtype not in _READABLE:
        called = str(tensor.dtype).removeprefix("torch.")
        raise ModelLoadError(
            f"{name} is of type {called}, and config.json does not say what its values stand for: weights are read as "
            "float32, bfloat16 or float16"
        )


def store_as_int8(model: nn.Module) -> None:
    """Give the weights that may be quantised the INT8 form, before they are loaded."""
    for module in model.modules():
        if isinstance(module, QuantizableModule):
            module.store_as_int8()


@torch.inference_mode()  # which belongs to the thread
def _write(destination: Destination, tensor: Tensor | EncodedTensor) -> int:
    """Write a tensor, or what this rank keeps of it, to its parameter; returns the bytes that it takes there.

    A file's tensor is a view of the file: of what is not kept, nothing is read but the pages that it shares.
    """
    share, whole = destination.share, destination.tensor
    if share is None:
        _write_part(destination, (), tensor)
    elif not share.ranges:
        whole.zero_()
    elif share.axis == "columns":
        _write_part(destination, (), tensor, share.ranges[0])
    else:
        # Matrix by matrix: a range of rows of several would be no view when it is flattened.
        matrices = [()] if whole.dim() < 3 else [(matrix,) for matrix in range(whole.shape[0])]
        for outer in matrices:
            for rows, of_rows in share.row_ranges():
                _write_part(destination, (*outer, rows), tensor[*outer, of_rows])
    return whole.nbytes


def _write_part(destination: Destination, index: Index, tensor: Tensor | EncodedTensor, columns: slice = ALL) -> None:
    target = destination.tensor[index]
    if target.dtype is torch.int8:
        quantize_into(target, destination.scale[index], tensor, columns)
    else:
        copy_into(target, tensor, columns)
