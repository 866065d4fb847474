"""Which encoder a model gets."""

from collections.abc import Callable
from typing import Final

from deepseek_engine.chat.bounded_template import open_template
from deepseek_engine.chat.conversation import ChatEncoder
from deepseek_engine.chat.deepseek_v4 import DeepSeekV4Encoder
from deepseek_engine.chat.deepseek_v32 import DeepSeekV32Encoder
from deepseek_engine.chat.template_encoder import TemplateEncoder
from deepseek_engine.errors import ModelLoadError
from deepseek_engine.text_parsers.markup import FORMATS

CHAT_FORMATS: Final = ("auto", *sorted(FORMATS))

# By the name of the format and by config.json's model_type.
_ENCODERS: Final[dict[str, Callable[[], ChatEncoder]]] = {
    "deepseek-v3.2": DeepSeekV32Encoder,
    "deepseek_v32": DeepSeekV32Encoder,
    "deepseek-v4": DeepSeekV4Encoder,
    "deepseek_v4": DeepSeekV4Encoder,
}


def choose_encoder(
    template: str | None, *, model_type: str | None, chat_format: str = "auto", bos_token: str = "", eos_token: str = ""
) -> ChatEncoder | None:
    """The encoder, or None for a model that is not made for chat.

    A checkpoint's own template comes before what its type says, and a format asked for by name before both.

    Args:
        template: text of the model's template.
        model_type: as its config.json says.
        chat_format: a name of `CHAT_FORMATS`.
        bos_token: beginning token, for the template.
        eos_token: end token, for the template.

    Raises:
        ModelLoadError: the template does not compile, or the format's name is unknown.
    """
    if chat_format not in CHAT_FORMATS:
        raise ModelLoadError(f"chat_format={chat_format!r} is unknown: use one of {', '.join(CHAT_FORMATS)}")
    builtin = _ENCODERS.get(chat_format if chat_format != "auto" else model_type or "")
    if builtin is not None and (template is None or chat_format != "auto"):
        return builtin()
    if template is None:
        return None
    opened = open_template(template, bos_token=bos_token, eos_token=eos_token)
    return TemplateEncoder(opened, FORMATS.get(chat_format))
