"""WireModel: the base of every request and response on the wire."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """A JSON object of the HTTP contract.

    Unknown fields survive a round trip (DeepSeek adds fields without notice), and a field that was never set stays
    off the wire, so that the server's own default applies.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=(), defer_build=True, ser_json_inf_nan="null")

    def to_wire(self) -> dict[str, Any]:
        """The JSON object to send: set fields and unknown fields, nothing else."""
        return self.model_dump(mode="json", exclude_unset=True)
