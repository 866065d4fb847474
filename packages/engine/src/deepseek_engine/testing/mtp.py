"""Tiny DeepSeek-V3 checkpoints with a layer for multi-token prediction, and transformers' own as the oracle."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType] - typed in part
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedConfig
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from deepseek_engine.testing.families import TINY_LATENT, build_oracle, write_family_checkpoint

V3: dict[str, Any] = {**TINY_LATENT, "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 1}
LAYER = f"model.layers.{V3['num_hidden_layers']}."


def write_mtp_checkpoint(
    folder: Path,
    *,
    config: PreTrainedConfig | None = None,
    damping: float = 1.0,
    rightness: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write a checkpoint as DeepSeek releases them: the layer repeats the embedding and the head.

    Args:
        folder: made if it does not exist.
        config: of DeepSeek V3 or its kin, with the sizes of `V3`; None is V3.
        damping: of what layers add to the embedding. Near 0 the next token follows from the last one alone.
        rightness: from 0 for a random layer to 1 for one that does to an embedding what a damped model does to it.
        seed: of the weights.
    """
    model = build_oracle(DeepseekV3Config(**V3) if config is None else config, seed)
    write_family_checkpoint(folder, model)
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    hidden = V3["hidden_size"]
    generator = torch.Generator().manual_seed(seed + 1)

    def vector() -> Tensor:
        return 1 + (1 - rightness) * 0.1 * torch.randn(hidden, generator=generator)

    for name in [name for name in tensors if name.endswith(("o_proj.weight", "down_proj.weight"))]:
        tensors[name] *= damping
    last = f"model.layers.{V3['num_hidden_layers'] - 1}."
    for name in [name for name in tensors if name.startswith(last)]:
        noise = torch.randn(tensors[name].shape, generator=generator) * tensors[name].std().nan_to_num(0.1)
        tensors[LAYER + name.removeprefix(last)] = tensors[name] + noise
    merge = torch.randn(hidden, 2 * hidden, generator=generator) / (2 * hidden) ** 0.5
    merge *= 1 - rightness
    merge[:, :hidden] += rightness * torch.eye(hidden)
    tensors |= {f"{LAYER}{name}.weight": vector() for name in ("enorm", "hnorm", "shared_head.norm")}
    tensors[f"{LAYER}eh_proj.weight"] = merge
    tensors[f"{LAYER}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{LAYER}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class MtpOracle:
    """transformers' model of a folder, and its MTP layer, both with eager attention in float32."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        # It knows the layer of models of 61 layers alone.
        self._model._keys_to_ignore_on_load_unexpected = [LAYER.replace(".", r"\.")]  # noqa: SLF001 - there is no other way to say so
        self._mtp: Any = MtpModel.from_pretrained(self._model).eval()

    @torch.inference_mode()
    def first_guess_logits(self, token_ids: list[int]) -> Tensor:
        """What the layer says at every position but the first, for the token after it: float32 [tokens - 1, V]."""
        return self._mtp.shared_head(self._run(token_ids, self._cache()))[0]

    @torch.inference_mode()
    def guesses(self, token_ids: list[int], count: int) -> list[int]:
        """The likeliest tokens behind the last, the layer run on its own output for those behind the first."""
        cache, found = self._cache(), list[int]()
        state = self._run(token_ids, cache)[:, -1:]
        for _ in range(count):
            found.append(int(self._mtp.shared_head(state)[0, -1].argmax()))
            position = torch.tensor([[len(token_ids) - 1 + len(found)]])
            state = self._mtp.forward_layer(0, state, position, cache, input_ids=torch.tensor([found[-1:]]))
        return found

    def _cache(self) -> MtpCache:
        return MtpCache(config=self._model.config.get_mtp_config())

    def _run(self, token_ids: list[int], cache: MtpCache) -> Tensor:
        ids = torch.tensor([token_ids])
        states = self._model(ids[:, :-1], output_hidden_states=True, use_cache=False).hidden_states[-1]
        positions = torch.arange(1, len(token_ids))[None]
        return self._mtp.forward_layer(0, states, positions, cache, input_ids=ids[:, 1:])
