"""An adapter's folder to low-rank factors: every tensor claimed, every target filled, every shape and value judged."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from deepseek_engine.errors import AdapterError
from deepseek_engine.lora.low_rank import LowRankFactors, LowRankPart
from deepseek_engine.lora.peft_config import AdapterRules, read_adapter_config
from deepseek_engine.lora.targets import UNSUPPORTED, Target
from deepseek_engine.name_list import listed

WEIGHTS_NAME: Final = "adapter_model.safetensors"
_MAX_HEADER_BYTES: Final = 2**22
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
_TENSOR_NAME: Final = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded adapter: its factors by the name of the layer that they change."""

    factors: Mapping[str, LowRankFactors]
    max_rank: int
    num_bytes: int


class AdapterReader:
    """Reads adapters for one model.

    Args:
        targets: what may be adapted.
        max_rank: highest rank of a projection.
        dtype: of the factors.
    """

    def __init__(self, targets: Mapping[str, Target], *, max_rank: int, dtype: torch.dtype) -> None:
        self._targets = targets
        self._max_rank = max_rank
        self._dtype = dtype
        # No float32 file of this rank for this model is larger, so that size bounds what is read.
        num_elements = sum(max_rank * (target.in_features + target.out_features) for target in targets.values())
        self._max_file_bytes = 4 * num_elements + _MAX_HEADER_BYTES

    def read(self, folder: Path) -> Adapter:
        """Read an adapter as PEFT saves it; may run in any thread.

        Raises:
            AdapterError: the folder is no adapter for this model; the message names file, field or tensor.
        """
        rules = AdapterRules(read_adapter_config(folder))
        path = folder / WEIGHTS_NAME
        tensors = self._load(folder, path)
        wanted = self._wanted(path, rules, tensors.keys())
        projections: dict[str, list[_Projection]] = {}
        for name in wanted:
            target = self._targets[name]
            projection = self._projection(path, name, target, rules, tensors)
            projections.setdefault(target.layer_name, []).append(projection)
        fused = {name: _fuse(of_layer) for name, of_layer in projections.items()}
        return Adapter(
            fused,
            max_rank=max(rules.rank(name) for name in wanted),
            num_bytes=sum(factors.num_bytes for factors in fused.values()),
        )

    def _load(self, folder: Path, path: Path) -> dict[str, Tensor]:
        # Read, not mapped: a mapped file that someone shortens meanwhile would end the process with SIGBUS.
        try:
            with path.open("rb") as file:
                raw = file.read(self._max_file_bytes + 1)
        except OSError as error:
            pickled = (folder / "adapter_model.bin").is_file()
            hint = "pickled adapters (.bin) are never loaded" if pickled else "an adapter is a folder as PEFT saves it"
            raise AdapterError(f"{path} cannot be read ({error.strerror}): {hint}") from error
        if len(raw) > self._max_file_bytes:
            raise AdapterError(
                f"{path} is larger than {self._max_file_bytes} bytes, the size of an adapter of rank {self._max_rank} "
                "for this model"
            )
        try:
            return load_safetensors(raw)
        except (SafetensorError, ValueError, KeyError) as error:
            raise AdapterError(f"{path} cannot be read as safetensors: {error}") from error

    def _wanted(self, path: Path, rules: AdapterRules, names: Iterable[str]) -> list[str]:
        """The projections that this adapter changes, after checking that the file has just their tensors."""
        given: dict[str, set[str]] = {}
        strange: set[str] = set()
        for tensor_name in names:
            found = _TENSOR_NAME.fullmatch(tensor_name)
            if found is not None and found[1] in self._targets:
                given.setdefault(found[1], set()).add(found[2])
            else:
                strange.add(tensor_name)
        if strange:
            raise AdapterError(f"{path} has tensors that this model cannot apply: {listed(strange)}{_why(strange)}")
        wanted = {name for name in self._targets if rules.targets(name)}
        if not_asked := given.keys() - wanted:
            names_ = listed(_tensor_name(name, which) for name in not_asked for which in given[name])
            raise AdapterError(f"{path} has tensors that adapter_config.json does not target: {names_}")
        missing = {_tensor_name(name, which) for name in wanted for which in {"A", "B"} - given.get(name, set())}
        if missing:
            raise AdapterError(f"{path} lacks {listed(missing)}, which adapter_config.json targets")
        if not wanted:
            raise AdapterError(f"{path.parent}: adapter_config.json targets no layer of this model")
        return [name for name in self._targets if name in wanted]

    def _projection(
        self, path: Path, name: str, target: Target, rules: AdapterRules, tensors: Mapping[str, Tensor]
    ) -> "_Projection":
        rank = rules.rank(name)
        if rank > self._max_rank:
            raise AdapterError(
                f"{path.parent}: the adapter has rank {rank} for {name}: the highest here is {self._max_rank} "
                "(max_lora_rank)"
            )
        a_RI = self._checked(path, _tensor_name(name, "A"), tensors, (rank, target.in_features))
        b_OR = self._checked(path, _tensor_name(name, "B"), tensors, (target.out_features, rank))
        scaled = b_OR.float() * rules.scaling(name)
        return _Projection(target.columns, a_RI.to(self._dtype), scaled.to(self._dtype).contiguous())

    @staticmethod
    def _checked(path: Path, name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise AdapterError(
                f"{path}: {name} has shape {list(tensor.shape)}: this model and its rank ask for {list(shape)}"
            )
        if tensor.dtype not in _DTYPES:
            raise AdapterError(f"{path}: {name} is of {tensor.dtype}: adapters are float32, bfloat16 or float16")
        if not bool(tensor.isfinite().all()):
            raise AdapterError(f"{path}: {name} has values that are not finite")
        return tensor


@dataclass(frozen=True, slots=True)
class _Projection:
    """The factors of one projection, and its columns in the output of its layer."""

    columns: slice
    a_RI: Tensor
    b_OR: Tensor


def _fuse(projections: Sequence[_Projection]) -> LowRankFactors:
    """The factors of a layer: each projection has its own columns of the output and its own ranks in the middle."""
    parts: list[LowRankPart] = []
    start = 0
    for projection in projections:
        end = start + projection.a_RI.shape[0]
        parts.append(LowRankPart(projection.columns, slice(start, end), projection.b_OR))
        start = end
    return LowRankFactors(torch.cat([projection.a_RI for projection in projections]), tuple(parts))


def _tensor_name(module: str, which: str) -> str:
    return f"base_model.model.{module}.lora_{which}.weight"


def _why(names: Iterable[str]) -> str:
    for name in sorted(names):
        for module, reason in UNSUPPORTED.items():
            if f".{module}." in name:
                return f" ({reason})"
    return ""
