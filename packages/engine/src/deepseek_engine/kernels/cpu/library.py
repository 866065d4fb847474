"""The compiled kernels: their structures, their functions, and whether this machine can run them.

Field order and types follow the headers in `csrc/`; their sizes are compared when the library is loaded.
"""

import ctypes
import logging
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import torch

logger = logging.getLogger(__name__)

LIBRARY: Final = Path(__file__).with_name("_native.so")
NEEDED: Final = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_bf16", "avx512_vnni")

BF16, INT8, FLOAT = 0, 1, 2
STORE_BF16, STORE_FLOAT, ADD_BF16, SILU_MUL = 0, 1, 2, 3
SOFTMAX, SIGMOID, SPARSEMIXER = 0, 1, 2


class Function(Protocol):
    """One of the library's functions; ctypes has no public name for its type."""

    restype: Any
    argtypes: Any

    def __call__(self, *arguments: Any) -> Any:
        """Call it, without the interpreter's lock."""
        ...


class Matrix(Structure):
    """`ds_matrix`: packed weights."""

    _fields_ = [
        ("data", c_void_p),
        ("scale", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
        ("num_inputs", c_int64),
        ("num_outputs", c_int64),
        ("kind", c_int64),
    ]


class Product(Structure):
    """`ds_product`: rows times a matrix."""

    _fields_ = [
        ("matrix", POINTER(Matrix)),
        ("rows", c_void_p),
        ("bytes", c_void_p),
        ("row_scales", c_void_p),
        ("num_rows", c_int64),
        ("epilogue", c_int64),
        ("target", c_void_p),
        ("target_stride", c_int64),
    ]


class Batch(Structure):
    """`ds_batch`: the sequences of a step."""

    _fields_ = [
        ("num_sequences", c_int64),
        ("first_row", c_void_p),
        ("context_lens", c_void_p),
        ("prefix_lens", c_void_p),
        ("block_tables", c_void_p),
        ("table_stride", c_int64),
        ("block_size", c_int64),
    ]


class Norm(Structure):
    """`ds_norm`: a norm's weights; by mean and variance where there is a bias."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Routing(Structure):
    """`ds_routing`: how a mixture's experts are chosen."""

    _fields_ = [
        ("kind", c_int64),
        ("num_experts", c_int64),
        ("experts_per_token", c_int64),
        ("num_groups", c_int64),
        ("groups_per_token", c_int64),
        ("normalise", c_int64),
        ("scaling", c_float),
        ("jitter", c_float),
    ]


class LatentShape(Structure):
    """`ds_latent_shape`: sizes of latent attention."""

    _fields_ = [
        ("num_heads", c_int64),
        ("query_rank", c_int64),
        ("kv_rank", c_int64),
        ("nope_dim", c_int64),
        ("rope_dim", c_int64),
        ("value_dim", c_int64),
        ("is_interleaved", c_int64),
        ("scale", c_float),
    ]


class IndexerShape(Structure):
    """`ds_indexer_shape`: sizes of sparse attention's indexer."""

    _fields_ = [("num_heads", c_int64), ("dim", c_int64), ("rope_dim", c_int64), ("top_k", c_int64)]


class Indexer(Structure):
    """`ds_indexer`, with its `ds_chosen` at the end: one layer's choice of keys."""

    _fields_ = [
        ("shape", POINTER(IndexerShape)),
        ("batch", POINTER(Batch)),
        ("num_rows", c_int64),
        ("queries", c_void_p),
        ("keys", c_void_p),
        ("weights", c_void_p),
        ("key_norm", POINTER(Norm)),
        ("cos_sin", c_void_p),
        ("cache", c_void_p),
        ("positions", c_void_p),
        ("counts", c_void_p),
        ("top_k", c_int64),
    ]


class Attention(Structure):
    """`ds_attention`: one layer's attention."""

    _fields_ = [
        ("batch", POINTER(Batch)),
        ("qkv", c_void_p),
        ("row_stride", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("cos_sin", c_void_p),
        ("q_norm", POINTER(Norm)),
        ("k_norm", POINTER(Norm)),
        ("scale", c_float),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("target", c_void_p),
    ]


class Layer(Structure):
    """`ds_layer`: a layer's weights and cache."""

    _fields_ = [
        ("attention_norm", Norm),
        ("feed_forward_norm", Norm),
        ("qkv", Matrix),
        ("output", Matrix),
        ("q_norm", Norm),
        ("k_norm", Norm),
        ("query", Matrix),
        ("fold_keys", POINTER(Matrix)),
        ("fold_values", POINTER(Matrix)),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("router", Matrix),
        ("choice_bias", c_void_p),
        ("experts_gate_up", POINTER(Matrix)),
        ("experts_down", POINTER(Matrix)),
        ("experts_bias", c_void_p),
        ("index_query", Matrix),
        ("index_key", Matrix),
        ("index_weights", Matrix),
        ("index_norm", Norm),
        ("asking_router", Matrix),
        ("asking_queries", POINTER(Matrix)),
        ("asking_outputs", POINTER(Matrix)),
        ("asking_bias", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Decoder(Structure):
    """`ds_decoder`: a model."""

    _fields_ = [
        ("num_layers", c_int64),
        ("hidden_size", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("latent", LatentShape),
        ("indexer", IndexerShape),
        ("dense_size", c_int64),
        ("expert_size", c_int64),
        ("routing", Routing),
        ("is_asking", c_int64),
        ("attention_scale", c_float),
        ("embedding", Matrix),
        ("final_norm", Norm),
        ("cos_sin", c_void_p),
        ("layers", POINTER(Layer)),
    ]


class Step(Structure):
    """`ds_step`: one batch."""

    _fields_ = [
        ("batch", Batch),
        ("num_rows", c_int64),
        ("token_ids", c_void_p),
        ("num_wanted", c_int64),
        ("wanted_rows", c_void_p),
        ("hidden", c_void_p),
        ("scratch", c_void_p),
    ]


class LowRank(Structure):
    """`ds_low_rank`: one adapter's change of one linear layer."""

    _fields_ = [("a", Matrix), ("b", Matrix)]


class AdapterRows(Structure):
    """`ds_adapter_rows`: one adapter's rows in a step."""

    _fields_ = [("rows", c_void_p), ("num_rows", c_int64), ("changes", POINTER(LowRank))]


class Adapters(Structure):
    """`ds_adapters`: all adapters of a step."""

    _fields_ = [
        ("groups", POINTER(AdapterRows)),
        ("num_groups", c_int64),
        ("max_ranks", c_int64),
        ("scratch", c_void_p),
    ]


class Library:
    """The functions, typed. All tensors are contiguous; whoever calls keeps them alive. One caller at a time."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        structure_size = _function(handle.ds_structure_size, c_int64, c_int64)
        structures = (
            Matrix, Product, Batch, Attention, Layer, Decoder, Step, AdapterRows, Adapters, Norm, Routing, LatentShape,
            IndexerShape, Indexer,
        )  # fmt: skip
        for index, structure in enumerate(structures):
            ours, theirs = ctypes.sizeof(structure), structure_size(index)
            if ours != theirs:
                raise OSError(f"{LIBRARY} is of another version ({structure.__name__} has {theirs} bytes, not {ours})")
        self.set_amx = _function(handle.ds_set_amx, c_int, c_int)
        self.set_num_threads = _function(handle.ds_set_num_threads, None, c_int)
        self.pack_bf16 = _function(handle.ds_pack_bf16, None, c_void_p, c_int64, c_int64, c_void_p)
        self.pack_float = _function(handle.ds_pack_float, None, c_void_p, c_int64, c_int64, c_void_p)
        self.pack_int8 = _function(handle.ds_pack_int8, None, c_void_p, c_int64, c_int64, c_void_p, c_void_p)
        self.quantize_rows = _function(handle.ds_quantize_rows, None, c_void_p, c_int64, c_int64, c_void_p, c_void_p)
        self.matmul = _function(handle.ds_matmul, None, POINTER(Product))
        self.route_row = _function(
            handle.ds_route_row, None, POINTER(Routing), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p
        )
        self.indexer_choose = _function(handle.ds_indexer_choose, None, POINTER(Indexer))
        self.attention_write = _function(handle.ds_attention_write, None, POINTER(Attention))
        self.attention_attend = _function(handle.ds_attention_attend, None, POINTER(Attention))
        self.scratch_bytes = _function(handle.ds_scratch_bytes, c_int64, POINTER(Decoder), c_int64)
        self.decoder_step = _function(handle.ds_decoder_step, None, POINTER(Decoder), POINTER(Step))
        self.adapters_scratch_bytes = _function(
            handle.ds_adapters_scratch_bytes, c_int64, POINTER(Decoder), c_int64, c_int64
        )
        self.decoder_step_adapted = _function(
            handle.ds_decoder_step_adapted, None, POINTER(Decoder), POINTER(Step), POINTER(Adapters)
        )
        self.set_num_threads(torch.get_num_threads())
        unit = "AMX" if self.set_amx(True) else "AVX-512"
        logger.info("the CPU kernels multiply with %s on %d threads", unit, torch.get_num_threads())


@cache
def load() -> Library | None:
    """The kernels, or None where they were not built or the processor lacks their instructions."""
    missing = [name for name in NEEDED if not torch.cpu.get_capabilities().get(name)]
    if missing or not LIBRARY.exists():
        reason = f"the processor lacks {', '.join(missing)}" if missing else "they were not built"
        logger.info("computing with torch's operators: there are no CPU kernels here, since %s", reason)
        return None
    try:
        return Library(ctypes.CDLL(str(LIBRARY)))
    except (OSError, AttributeError) as error:
        logger.warning("computing with torch's operators: the CPU kernels cannot be loaded: %s", error)
        return None


def _function(function: Function, result: type | None, *arguments: type) -> Function:
    function.restype = result
    function.argtypes = list(arguments)
    return function
