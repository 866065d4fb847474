"""The fields of what administrators write: one place for their bounds, for the API, the commands and the pages."""

import unicodedata
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from deepseek_gateway.auth.netlist import parse_network
from deepseek_gateway.errors import ApiError

MAX_NAME: Final = 100
MAX_TIME: Final = 253402300800.0
"""Unix time at which the year 10000 begins."""


def _visible(text: str) -> str:
    # Control characters would break tables, logs and PostgreSQL's texts; format characters make two names look alike.
    if text != text.strip() or any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in text):
        raise ValueError("has invisible characters, or spaces at an end")
    return text


def _pattern(text: str) -> str:
    if "*" in text[:-1] or _visible(text) != text:
        raise ValueError("is no model name: write it whole, or its beginning and one * at the end")
    return text


def _network(text: str) -> str:
    return str(parse_network(text))


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_visible)]
Tag = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_visible)]
Id = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[0-9A-Za-z_-]+$")]
ModelPattern = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_pattern)]
Cidr = Annotated[str, Field(min_length=2, max_length=64), AfterValidator(_network)]
UnixTime = Annotated[float, Field(gt=0, lt=MAX_TIME, allow_inf_nan=False)]


class Draft(BaseModel):
    """What an administrator writes: a field that does not exist is a fault, not a wish that is forgotten."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def refusal(error: ValidationError) -> ApiError:
    """The answer to a draft that does not hold, by its first fault; the others are counted."""
    first, *others = error.errors(include_url=False, include_context=False)
    param = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if first["type"] == "missing" else f"={str(first['input'])[:80]!r}"
    more = f" (and {len(others)} more faults)" if others else ""
    if not param:  # our own words say where the fault is, when it only shows as a whole
        return ApiError(422, message if first["type"] == "value_error" else f"the body: {message}")
    if first["type"] == "extra_forbidden":
        message = "there is no such field"
    return ApiError(422, f"{param}{shown}: {message}{more}", param=param)
