"""`adapter_config.json` in PEFT's format: what an adapter changes, and how strongly. No torch.

A field that changes what an adapter computes and that is not here is refused by name: an adapter that is applied in
part is another model than the one that was trained.
"""

import math
from pathlib import Path
from typing import Any, Final

import msgspec

from deepseek_engine.errors import AdapterError
from deepseek_engine.lora.name_patterns import NamePattern, layer_pattern

CONFIG_NAME: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 2**20
MAX_PATTERNS: Final = 4096
ALL_LINEAR: Final = "all-linear"

_REFUSED: Final = {
    "use_dora": "DoRA scales the merged weights, which an unmerged adapter does not have",
    "modules_to_save": "whole modules beside the adapter are not served",
    "lora_bias": "biases of adapters are not served",
    "fan_in_fan_out": "transposed (Conv1D) layers do not occur in these models",
    "trainable_token_indices": "changed embeddings are not served",
    "layer_replication": "replicated layers are not served",
    "alora_invocation_tokens": "activated LoRA is not served",
    "arrow_config": "Arrow routing is not served",
    "use_bdlora": "block-diagonal LoRA is not served",
    "use_qalora": "QALoRA is not served",
    "kasa_config": "KaSA is not served",
    "monteclora_config": "MonteCLoRA is not served",
    "target_parameters": "adapters of expert parameters are not served",
}
"""Fields of PEFT's LoraConfig that are off when they are missing or falsy."""

_KEEPS_BASE: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they were; PiSSA, OLoRA, LoftQ and CorDA change them."""


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of PEFT's LoraConfig that say what to compute, under PEFT's names."""

    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    bias: str = "none"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None


class AdapterRules:
    """What an adapter does to which linear layer, by the layers' full names as in `model.layers.0.self_attn.q_proj`.

    Raises:
        AdapterError: a pattern is not a regular expression, or one that could run for long.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        self._targets = _names_or_pattern(config.target_modules)
        self._excluded = _names_or_pattern(config.exclude_modules)
        self._ranks = [(NamePattern.tail(key), rank) for key, rank in (config.rank_pattern or {}).items()]
        self._alphas = [(NamePattern.tail(key), alpha) for key, alpha in (config.alpha_pattern or {}).items()]
        patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
        self._layer_patterns = [layer_pattern(name) for name in patterns or [r"[^.]*"]]

    @property
    def targets_all_linear(self) -> bool:
        """Whether `target_modules` is the word for every linear layer."""
        targets = self._config.target_modules
        return isinstance(targets, str) and targets.lower() == ALL_LINEAR

    def rank(self, module: str) -> int:
        """The rank of the adapter of one module."""
        return next((rank for pattern, rank in self._ranks if pattern.matches(module)), self._config.r)

    def scaling(self, module: str) -> float:
        """What `B A` is multiplied with: alpha over the rank, or over its root for rank-stabilised LoRA."""
        alphas = (alpha for pattern, alpha in self._alphas if pattern.matches(module))
        alpha, rank = next(alphas, self._config.lora_alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self._config.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the adapter changes a linear layer, by PEFT's rules for lists, patterns and layer numbers."""
        if _names(self._excluded, module):
            return False
        if self.targets_all_linear:
            return True
        return _names(self._targets, module) and (
            isinstance(self._targets, NamePattern) or self._is_layer_chosen(module)
        )

    def _is_layer_chosen(self, module: str) -> bool:
        chosen = self._config.layers_to_transform
        if chosen is None or chosen == []:
            return True
        found = next((found for pattern in self._layer_patterns if (found := pattern.match(module))), None)
        return found is not None and int(found[1]) in ([chosen] if isinstance(chosen, int) else chosen)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and judge `adapter_config.json`.

    Raises:
        AdapterError: it is missing, too large, not of PEFT's shape, or asks for what is not served here.
    """
    path = folder / CONFIG_NAME
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise AdapterError(
            f"{path} cannot be read ({error.strerror}): an adapter is a folder as PEFT saves it"
        ) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise AdapterError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        fields: Any = msgspec.json.decode(raw)
        config = msgspec.convert(fields, AdapterConfig)
    except msgspec.DecodeError as error:
        raise AdapterError(f"{path} is not an adapter configuration: {error}") from error
    _refuse_unserved(path, fields)
    _check_values(path, config)
    return config


def _refuse_unserved(path: Path, fields: dict[str, Any]) -> None:
    for name, reason in _REFUSED.items():
        if fields.get(name):
            raise AdapterError(f"{path}: {name}={_shown(fields[name])} is not supported: {reason}")
    init = fields.get("init_lora_weights")
    if not isinstance(init, bool) and init not in _KEEPS_BASE:
        raise AdapterError(
            f"{path}: init_lora_weights={_shown(init)} is not supported, since it changes the base weights: save the "
            "adapter with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )


def _check_values(path: Path, config: AdapterConfig) -> None:
    if config.peft_type != "LORA":
        raise AdapterError(f"{path}: peft_type={_shown(config.peft_type)} is not supported: only LORA is")
    if config.bias != "none":
        raise AdapterError(
            f"{path}: bias={_shown(config.bias)} is not supported: only 'none' is, adapters have no biases"
        )
    if not config.target_modules:
        raise AdapterError(f"{path}: target_modules is missing: it says what the adapter changes")
    ranks = {"r": config.r} | {
        f"rank_pattern[{_shown(key)}]": rank for key, rank in (config.rank_pattern or {}).items()
    }
    for name, rank in ranks.items():
        if rank < 1:
            raise AdapterError(f"{path}: {name}={rank}: a rank is at least 1")
    alphas = (config.lora_alpha, *(config.alpha_pattern or {}).values())
    if not all(math.isfinite(alpha) for alpha in alphas):
        raise AdapterError(f"{path}: lora_alpha and the values of alpha_pattern must be finite")
    for name in ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"):
        given = getattr(config, name)
        if given is not None and not isinstance(given, str) and len(given) > MAX_PATTERNS:
            raise AdapterError(f"{path}: {name} has {len(given)} entries: at most {MAX_PATTERNS} are allowed")


def _names_or_pattern(given: list[str] | str | None) -> frozenset[str] | NamePattern:
    return NamePattern.whole(given) if isinstance(given, str) else frozenset(given or ())


def _names(chosen: frozenset[str] | NamePattern, module: str) -> bool:
    """Whether a pattern matches the module, or a list has its name or the last parts of its name."""
    if isinstance(chosen, NamePattern):
        return chosen.matches(module)
    parts = module.split(".")
    return any(".".join(parts[start:]) in chosen for start in range(len(parts)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
