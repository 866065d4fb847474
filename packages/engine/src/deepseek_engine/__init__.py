"""Inference engine for dense and mixture-of-experts models: paged KV cache, continuous batching.

`LLM` runs a model in this process; `deepseek-server` runs it behind HTTP.
"""

from typing import TYPE_CHECKING, Any

from deepseek_engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from deepseek_engine.llm import LLM, CompletionOutput, EmbeddingOutput, LoRARequest, RequestOutput

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "EmbeddingOutput",
    "LoRARequest",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load the offline interface, and torch with it, on first use: the server's own process never needs them."""
    if name in {"LLM", "CompletionOutput", "EmbeddingOutput", "LoRARequest", "RequestOutput"}:
        from deepseek_engine import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
