"""A checkpoint folder as a GGUF file, as llama.cpp's converter writes it. For tests only.

Names come from the gguf package's own table, so that they are not ours twice. Quantised files hold other weights than
the folder: they are given back, under Hugging Face names, for the oracle to run on.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] - typed in part
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
KindOf = Callable[[str], Kind]
"""A tensor's type by its name in the file."""

_ARCHITECTURES: Final = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MixtralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "DeepseekForCausalLM": gguf.MODEL_ARCH.DEEPSEEK,
    "DeepseekV2ForCausalLM": gguf.MODEL_ARCH.DEEPSEEK2,
    "DeepseekV3ForCausalLM": gguf.MODEL_ARCH.DEEPSEEK2,
}
_PERMUTED: Final = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.DEEPSEEK)
_EXPERT: Final = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")
_UP_OF_GATE: Final = {"w1": "w3", "gate_proj": "up_proj"}
_SCALES: Final = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
"""Where the float16 scales of a block lie, of the types that the gguf package reads and does not write."""


class GGUFExport:
    """One conversion.

    Args:
        folder: with config.json and model.safetensors, an expert a tensor.
        kind_of: the type of each matrix; vectors, routers and rows that are no whole number of blocks are float32.
        split_kv_b: whether DeepSeek's `kv_b_proj` becomes two tensors, as newer converters have it.
        experts: a projection of all experts of a layer in one tensor, as converters write them; a tensor each, as in
            Mixtral's first files; or gates above ups.
        changes: keys to write otherwise than a converter would, or, with None, not at all.
    """

    def __init__(
        self,
        folder: Path,
        kind_of: KindOf = lambda _: Kind.F32,
        *,
        split_kv_b: bool = True,
        experts: Literal["stacked", "single", "gate_up"] = "stacked",
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self._tensors = load_file(folder / "model.safetensors")
        self._tokenizer: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
        self._arch = _ARCHITECTURES[self.config["architectures"][0]]
        self._names = gguf.get_tensor_name_map(self._arch, self.config["num_hidden_layers"])
        self._kind_of = kind_of
        self._split_kv_b = split_kv_b
        self._experts = experts
        self._changes = dict(changes or {})
        self._random = np.random.default_rng(0)
        self.weights: dict[str, Tensor] = {}
        """What the file holds, dequantised, under Hugging Face names."""

    def write(self, path: Path, *, split_max_tensors: int = 0) -> Path:
        """Write the file; returns the path of the first one, where it is split."""
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[self._arch], split_max_tensors=split_max_tensors)
        self._write_config(writer)
        self._write_vocabulary(writer)
        self._write_tensors(writer)
        for key, value in self._changes.items():
            writer.kv_data[0].pop(key, None)
            if value is not None:
                writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path if path.exists() else next(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))

    def _write_config(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        latent = "kv_lora_rank" in config
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(1 if latent and self._split_kv_b else config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        rope: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
        writer.add_rope_freq_base(rope.get("rope_theta") or config["rope_theta"])
        self._write_rope_scaling(writer, rope)
        if latent:
            self._write_latent_attention(writer)
        else:
            head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
            writer.add_rope_dimension_count(head_dim)
        if experts := config.get("num_local_experts") or config.get("n_routed_experts"):
            writer.add_expert_count(experts)
            writer.add_expert_used_count(config["num_experts_per_tok"])
        if "n_routed_experts" in config:
            self._write_deepseek_experts(writer)

    @staticmethod
    def _write_rope_scaling(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
        kind = rope.get("rope_type", "default")
        if kind in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast", 32.0))
            writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow", 1.0))
            if "mscale_all_dim" in rope:
                writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])

    def _write_latent_attention(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        nope, rope, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
        if config["q_lora_rank"] is not None:
            writer.add_q_lora_rank(config["q_lora_rank"])
        writer.add_kv_lora_rank(rank)
        writer.add_rope_dimension_count(rope)
        if self._split_kv_b:
            writer.add_key_length(rank + rope)
            writer.add_value_length(rank)
            writer.add_key_length_mla(nope + rope)
            writer.add_value_length_mla(config["v_head_dim"])
        else:
            writer.add_key_length(nope + rope)
            writer.add_value_length(config["v_head_dim"])

    def _write_deepseek_experts(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_scale(config.get("routed_scaling_factor", 1.0))
        if self._arch is not gguf.MODEL_ARCH.DEEPSEEK2:
            return
        if config.get("n_group"):
            writer.add_expert_group_count(config["n_group"])
            writer.add_expert_group_used_count(config["topk_group"])
        is_v3 = config["architectures"][0] == "DeepseekV3ForCausalLM"
        if is_v3:
            writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if is_v3 else gguf.ExpertGatingFuncType.SOFTMAX)

    def _write_vocabulary(self, writer: gguf.GGUFWriter) -> None:
        model, added = self._tokenizer["model"], self._tokenizer["added_tokens"]
        special = {token["content"]: token["id"] for token in added}
        tokens = sorted({**model["vocab"], **special}.items(), key=lambda item: item[1])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([token for token, _ in tokens])
        writer.add_token_types([3 if token in special else 1 for token, _ in tokens])
        if model["merges"]:
            writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
        writer.add_eos_token_id(self.config["eos_token_id"] if isinstance(self.config["eos_token_id"], int) else 258)

    def _write_tensors(self, writer: gguf.GGUFWriter) -> None:
        rope: dict[str, Any] = self.config.get("rope_parameters") or {}
        if rope.get("rope_type") == "llama3":
            writer.add_tensor("rope_freqs.weight", self._llama3_factors(rope))
        for name, tensor in self._stacked(self._tensors):
            if ".experts." in name:
                self._write_experts(writer, name, tensor)
            elif name.endswith("kv_b_proj.weight") and self._split_kv_b:
                self._write_split_kv_b(writer, name, tensor)
            elif self._arch in _PERMUTED and re.search(r"\.(q|k)_proj\.(weight|bias)$", name):
                self._write_permuted(writer, name, tensor)
            else:
                self.weights[name] = self._add(writer, self._name(name), tensor)

    def _stacked(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The tensors, with the experts of a layer in one."""
        stacks: dict[str, dict[int, Tensor]] = {}
        for name, tensor in sorted(tensors.items()):
            match = _EXPERT.fullmatch(name)
            if match is None:
                yield name, tensor
            else:
                stacks.setdefault(f"{match[1]}.{match[3]}.weight", {})[int(match[2])] = tensor
        for name, experts in stacks.items():
            yield name, torch.stack([experts[index] for index in range(len(experts))])

    def _write_experts(self, writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> None:
        """Write the experts of one projection; of gates above ups, when it comes to the gates."""
        stored_name, block, projection = self._name(name), *name.removesuffix(".weight").rsplit(".", 1)
        if self._experts == "gate_up" and "ffn_down" not in stored_name:
            if "ffn_gate" in stored_name:
                ups = f"{block}.{_UP_OF_GATE[projection]}.weight"
                both = torch.cat((tensor, dict(self._stacked(self._tensors))[ups]), dim=1)
                gates, up_values = self._add(writer, stored_name.replace("gate", "gate_up"), both).chunk(2, dim=1)
                self._keep_experts(name, gates)
                self._keep_experts(ups, up_values)
        elif self._experts == "single":
            names = (stored_name.replace("_exps.", f".{index}.") for index in range(len(tensor)))
            values = [self._add(writer, each, expert) for each, expert in zip(names, tensor, strict=True)]
            self._keep_experts(name, torch.stack(values))
        else:
            self._keep_experts(name, self._add(writer, stored_name, tensor))

    def _write_permuted(self, writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> None:
        is_query = ".q_proj." in name
        heads = self.config["num_attention_heads" if is_query else "num_key_value_heads"]
        order = torch.arange(tensor.shape[0]).view(heads, 2, -1).swapaxes(1, 2).flatten()
        stored = self._add(writer, self._name(name), tensor[order])
        kept = torch.empty_like(stored)
        kept[order] = stored
        self.weights[name] = kept

    def _write_split_kv_b(self, writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> None:
        nope, value = self.config["qk_nope_head_dim"], self.config["v_head_dim"]
        heads = tensor.view(self.config["num_attention_heads"], nope + value, -1)
        keys, values = torch.split(heads, [nope, value], dim=1)
        key_b = self._add(writer, self._name(name.replace("kv_b", "k_b")), keys.transpose(1, 2).contiguous())
        value_b = self._add(writer, self._name(name.replace("kv_b", "v_b")), values.contiguous())
        self.weights[name] = torch.cat((key_b.transpose(1, 2), value_b), dim=1).reshape(tensor.shape)

    def _add(self, writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> Tensor:
        """Add the tensor, and return what it is once dequantised."""
        kind = self._kind_of(name)
        if tensor.dim() == 1 or "ffn_gate_inp" in name or tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Kind.F32
        values = tensor.float().numpy()
        if kind is Kind.F32:
            writer.add_tensor(name, values)
            return tensor.float()
        raw = self._random_blocks(tensor.shape, kind) if kind in _SCALES else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        return torch.from_numpy(gguf.quants.dequantize(raw, kind)).view(tensor.shape)

    def _random_blocks(self, shape: torch.Size, kind: Kind) -> Array:
        """Any bytes are a block, but for scales: these make weights of about 0.05."""
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = self._random.integers(0, 256, (math.prod(shape) // block_size, block_bytes), dtype=np.uint8)
        for at in _SCALES[kind]:
            scales = self._random.uniform(0.5e-4, 1.5e-4, (len(blocks), 1)).astype(np.float16)
            blocks[:, at : at + 2] = scales.view(np.uint8)
        return blocks.reshape(*shape[:-1], -1)

    def _keep_experts(self, name: str, tensor: Tensor) -> None:
        block, projection = name.removesuffix(".weight").rsplit(".", 1)
        self.weights |= {f"{block}.{index}.{projection}.weight": expert for index, expert in enumerate(tensor)}

    def _name(self, name: str) -> str:
        plain = name.replace("e_score_correction_bias", "e_score_correction.bias")
        found = self._names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        return found

    def _llama3_factors(self, rope: dict[str, Any]) -> Array:
        dim = self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]
        frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
        length = 2 * math.pi / frequencies
        original, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = np.clip((original / length - low) / (high - low), 0.0, 1.0)
        return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
