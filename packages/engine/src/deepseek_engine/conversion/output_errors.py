"""How far an INT8 checkpoint's layers are from those of the checkpoint it was made of, on a text.

Both are computed in float32 with the engine's reference operators, one after the other, so that it takes the memory of
one model: four bytes a value.
"""

from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from deepseek_engine.checkpoint_decoding import DecodedSource, store_as_checkpoint_does
from deepseek_engine.conversion.report import OutputErrors
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.model_runner import open_checkpoint
from deepseek_engine.model_source import resolve_model
from deepseek_engine.models.transformer import Transformer
from deepseek_engine.tokenizer import load_tokenizer
from deepseek_engine.weights import load_weights
from deepseek_engine.whole_prompt import run_whole_prompt

MAX_TOKENS: Final = 512

BUILT_IN_TEXT: Final = """\
The harbour was quiet when the last ferry left. Two fishermen mended a net under the yellow lamp, and neither of them
spoke until the church clock had struck eleven. "Tomorrow it will rain," said the older one, "and the day after too."

To find the roots of a x^2 + b x + c = 0, compute the discriminant d = b^2 - 4 a c. If d > 0 there are two real roots,
(-b + sqrt(d)) / (2 a) and (-b - sqrt(d)) / (2 a); for a = 1, b = -3 and c = 2 they are 2 and 1.

def fibonacci(n: int) -> list[int]:
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]

Photosynthesis turns carbon dioxide and water into sugar and oxygen. In 1779 Jan Ingenhousz found that only the green
parts of a plant give off oxygen, and only in light; in the dark the whole plant takes it up, as animals do.

{"name": "Ada Lovelace", "born": 1815, "fields": ["mathematics", "computing"], "notes": null}

Die Eisenbahn fährt um halb neun ab. Le train part à huit heures et demie. El tren sale a las ocho y media.
"""
"""Prose, mathematics, code, facts, JSON and other languages: what models are asked for."""


def text_tokens(model: str, text: str) -> list[int]:
    """The first tokens of a text.

    Raises:
        ModelLoadError: the model has no usable tokenizer, or the text has no tokens.
    """
    token_ids = load_tokenizer(model).encode(text)[:MAX_TOKENS]
    if not token_ids:
        raise ModelLoadError("the text to measure outputs on is empty")
    return token_ids


def measure_output_errors(model: str, int8_folder: Path, token_ids: list[int], text_name: str) -> OutputErrors:
    """Run both checkpoints on the tokens.

    Args:
        model: in full precision: a folder, a `.gguf` file or a built-in name.
        int8_folder: what was made of it.
        token_ids: of `text_tokens`.
        text_name: what the report calls the text.
    """
    expected, actual = (_outputs(path, token_ids) for path in (resolve_model(model), int8_folder))
    *layers, logits = map(_relative_error, actual, expected)
    return OutputErrors(text=text_name, num_tokens=len(expected[-1]), layers=layers, logits=logits)


def _outputs(path: Path, token_ids: list[int]) -> list[Tensor]:
    """The hidden states after each layer, then the logits; of no more tokens than the context holds."""
    config, source = open_checkpoint(path)
    token_ids = token_ids[: config.max_position_embeddings]
    model = Transformer(config, len(token_ids), torch.float32)
    if isinstance(source, DecodedSource):
        store_as_checkpoint_does(model, source)
    with torch.inference_mode():
        load_weights(model, source)
    found: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        found.append(output)

    for layer in model.layers:
        layer.register_forward_hook(keep)
    logits = run_whole_prompt(model, token_ids)
    return [*found, logits]


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    size = cast("float", expected.norm().item())
    return cast("float", (actual - expected).norm().item()) / size if size else 0.0
