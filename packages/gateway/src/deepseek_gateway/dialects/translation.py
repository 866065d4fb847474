"""What a dialect must say about itself to be served by the engine's chat."""

from dataclasses import dataclass
from typing import Any, Protocol

from deepseek_gateway.edge.error_shape import OPENAI_ERRORS, ErrorShape
from deepseek_gateway.relay.request import GenerationRequest
from deepseek_gateway.relay.stages import Stage


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in the engine's terms, and the way back for its answer.

    Attributes:
        request: what the engine is asked.
        stages: make the caller's answer of the engine's; none where both are the same.
        errors: writes errors; it may know the stream's state.
        prefix: the engine's API that serves it, `v1` or `beta`.
    """

    request: GenerationRequest
    stages: tuple[Stage, ...] = ()
    errors: ErrorShape = OPENAI_ERRORS
    prefix: str = "v1"


class Translation(Protocol):
    """One dialect. `path` is its API path, such as `messages`."""

    path: str
    errors: ErrorShape

    def translate(self, fields: dict[str, Any]) -> Translated:
        """A request's body in the engine's terms.

        Raises:
            ApiError: 400, the body asks for what is not here, or is malformed; it names the field.
        """
        ...
