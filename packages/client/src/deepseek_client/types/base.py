"""WireModel: the base of every request and response on the wire."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, PrivateAttr

Item = TypeVar("Item")


class _FirstErrorEnds(FailFast):
    """FailFast that can stand in a union: pydantic's own has no hash."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


WireList = Annotated[list[Item], _FirstErrorEnds()]
"""A list of a request: checking it ends at the first wrong item. A report on each of a million takes seconds."""


class WireModel(BaseModel):
    """A JSON object of the HTTP contract.

    Unknown fields survive a round trip (DeepSeek adds fields without notice), and a field that was never set stays
    off the wire, so that the server's own default applies.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=(), defer_build=True, ser_json_inf_nan="null")

    def to_wire(self) -> dict[str, Any]:
        """The JSON object to send: set fields and unknown fields, nothing else."""
        return self.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a stream broke and went on.

    Attributes:
        how: `replay`, the server sent what was missing; `prefix`, it went on from the text that had come.
        position: how many characters of the text had come.
        request_id: of the request that broke.
    """

    how: Literal["replay", "prefix"]
    position: int
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Origin:
    """How an answer came about. Two answers that differ only in these are equal, but for the id.

    Attributes:
        request_id: the id under which the server's logs have the request.
        retries_taken: how often the request had been sent before.
        elapsed_s: from the call to the answer, retries and waits included; None where nothing was sent.
        seams: where a stream broke and went on.
    """

    request_id: str | None = None
    retries_taken: int = field(default=0, compare=False)
    elapsed_s: float | None = field(default=None, compare=False)
    seams: tuple[Seam, ...] = field(default=(), compare=False)


class AnswerModel(WireModel):
    """A whole answer. Beside the body it knows how it came about; none of that is ever on the wire."""

    _origin: Origin = PrivateAttr(default=Origin())
    _cost: Decimal | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """The response's `x-request-id` (or a server's own name for it)."""
        return self._origin.request_id

    @property
    def retries_taken(self) -> int:
        """How often the request had been sent before it succeeded."""
        return self._origin.retries_taken

    @property
    def elapsed(self) -> float | None:
        """Seconds from the call to the answer, retries and waits included; None for what no call gave."""
        return self._origin.elapsed_s

    @property
    def seams(self) -> tuple[Seam, ...]:
        """Where the stream of this answer broke and went on, with `resume=True`."""
        return self._origin.seams

    @property
    def cost(self) -> Decimal | None:
        """What its tokens cost, by the client's price table; None where that is not known."""
        return self._cost

    def with_cost(self, cost: Decimal | None) -> None:
        """Note the price."""
        self._cost = cost

    def with_origin(self, origin: Origin) -> None:
        """Note how it came about."""
        self._origin = origin

    def with_origin_of(self, answer: "AnswerModel") -> None:
        """Note what is known of another answer, of which this one is made."""
        self._origin, self._cost = answer._origin, answer._cost  # noqa: SLF001  its own class
