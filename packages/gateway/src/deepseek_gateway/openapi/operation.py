"""What the OpenAPI document, the role matrix and, for the admin API, the route itself know of an operation."""

from dataclasses import dataclass
from http import HTTPStatus

from pydantic import BaseModel

from deepseek_client.types import ErrorBody
from deepseek_gateway.auth.records import Scope

KEYED = (401, 403, 503)
"""What a key alone can lead to: no good one, one for something else, and no store to look it up in."""


BODIED = (400, 413, 422)
"""What a body alone can lead to: no JSON, too long, or a field that is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        path: as the document lists it; in braces what the caller fills in.
        aliases: other paths that do the same.
        summary: a line for a reader.
        access: the scope that a key needs; None needs no key.
        is_global: a key that belongs to an organisation gets 403.
        query: parameters behind the question mark.
        body: the JSON body; None if there is none.
        answer: the JSON of the answer; several where the request decides; none if it is text.
        media_type: of an answer that is no JSON.
        also: another media type of the answer, where a parameter asks for it.
        chunk: the JSON of an event, where `"stream": true` asks for events.
        status: of success.
        errors: statuses beside it; those that a key or a body can lead to are added where one is needed.
        error: the JSON of an error.
    """

    method: str
    path: str
    aliases: tuple[str, ...] = ()
    summary: str
    access: Scope | None = None
    is_global: bool = False
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    answer: tuple[type[BaseModel], ...] = ()
    media_type: str = "text/plain"
    also: str | None = None
    chunk: type[BaseModel] | None = None
    status: int = HTTPStatus.OK
    errors: tuple[int, ...] = ()
    error: type[BaseModel] = ErrorBody

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths that do it."""
        return (self.path, *self.aliases)

    @property
    def statuses(self) -> frozenset[int]:
        """All statuses that it may answer with."""
        keyed = KEYED if self.access is not None else ()
        bodied = BODIED if self.body is not None else ()
        return frozenset({self.status, *self.errors, *keyed, *bodied})
