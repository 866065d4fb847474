"""A reasoning item's `encrypted_content`: what clients that keep no text bring back, so that tool loops go on from it.

OpenAI's clients send reasoning back in this field alone where nothing is stored. The text is no secret here, it stands
beside it in `content`; so this is the same text, in a form that such clients carry as it is.
"""

import base64
import binascii
from typing import Any, cast

from deepseek_gateway.foreign import Fields

INCLUDE = "reasoning.encrypted_content"
_MARK = "text:"


def is_wanted(asked: Fields) -> bool:
    """Whether a request asks for it."""
    include: Any = asked.get("include")
    return isinstance(include, list) and INCLUDE in cast("list[object]", include)


def carried(text: str) -> str:
    """The text to carry."""
    return _MARK + base64.b64encode(text.encode()).decode()


def brought_back(value: object) -> str:
    """The text that was carried; nothing where only its maker can read it."""
    if not isinstance(value, str) or not value.startswith(_MARK):
        return ""
    try:
        return base64.b64decode(value.removeprefix(_MARK), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
