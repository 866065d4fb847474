"""The form of OpenAI's /v1/moderations, which classifiers of texts speak."""

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from deepseek_gateway.errors import GatewayError

PIECE_CHARACTERS = 8 * 1024
"""Of one `input`: services cut or refuse longer ones."""

MAX_CATEGORIES = 200
"""Characters of all names of categories together."""


class ClassifierError(GatewayError):
    """The classifier gave no judgement."""


class _Result(BaseModel):
    flagged: bool
    categories: dict[str, bool | None] = {}


class _Answer(BaseModel):
    results: list[_Result]


_ANSWER = TypeAdapter(_Answer)


def pieces_of(text: str) -> list[str]:
    """A text as a list of inputs."""
    return [text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS)] or [""]


def categories_of(body: bytes, number: int) -> str | None:
    """What an answer flags, by the names of its categories; None when it flags nothing.

    Raises:
        ClassifierError: it has not a result for each of `number` inputs.
    """
    try:
        results = _ANSWER.validate_python(orjson.loads(body)).results
    except (ValueError, ValidationError) as error:
        raise ClassifierError("its answer has no `results` with `flagged` in them") from error
    if len(results) != number:
        raise ClassifierError(f"its answer has {len(results)} results for {number} inputs")
    flagged = [result.categories for result in results if result.flagged]
    if not flagged:
        return None
    names = ",".join(sorted({name for categories in flagged for name, is_so in categories.items() if is_so}))
    return "".join([letter for letter in names if letter.isprintable()])[:MAX_CATEGORIES] or "flagged"
