"""WireModel: the base of every request and response on the wire."""

from decimal import Decimal
from typing import Annotated, Any, TypeVar

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


class AnswerModel(WireModel):
    """A whole answer. Beside the body it knows the id under which the server's logs have the request."""

    _request_id: str | None = PrivateAttr(default=None)
    _cost: Decimal | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """The response's `x-request-id` (or a server's own name for it); never on the wire."""
        return self._request_id

    @property
    def cost(self) -> Decimal | None:
        """What its tokens cost, by the client's price table; None where that is not known. Never on the wire."""
        return self._cost

    def with_cost(self, cost: Decimal | None) -> None:
        """Note the price."""
        self._cost = cost

    def with_request_id(self, request_id: str | None) -> "AnswerModel":
        """Note the id that came in the response's headers, and return self."""
        self._request_id = request_id
        return self
