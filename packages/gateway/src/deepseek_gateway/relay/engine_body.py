"""How a request's body is written for the engine that gets it."""

import hashlib
from collections.abc import Callable
from typing import Any

import orjson

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.relay.request import GenerationRequest
from deepseek_gateway.upstream.pool import Placement


def body_maker(
    request: GenerationRequest, key: KeyRecord, model: str | None, clamp: int | None
) -> Callable[[Placement], bytes]:
    """How the body is written for the engine that gets it."""

    def body_for(placement: Placement) -> bytes:
        plan = placement.upstream.plan
        name = placement.model or model
        body = request.encode(name, clamp, continuous_usage=plan.continuous_usage)
        if plan.section.kind == "openai" and request.is_continuation:
            return continued_elsewhere(body)
        if plan.section.kind != "deepseek-cloud":
            return body
        # The account is ours; the hash keeps our tenants apart there without naming them.
        tenant = hashlib.sha256(f"{key.org_id or ''}/{key.public_id}".encode()).hexdigest()[:32]
        return orjson.dumps({**orjson.loads(body), "user_id": tenant})

    return body_for


def continued_elsewhere(body: bytes) -> bytes:
    """A chat whose last message is to be continued, as vLLM and SGLang ask for it; `prefix` is DeepSeek's way."""
    fields: dict[str, Any] = orjson.loads(body)
    *earlier, last = fields["messages"]
    plain = {name: value for name, value in last.items() if name != "prefix"}
    more = {"add_generation_prompt": False, "continue_final_message": True}
    return orjson.dumps({**fields, "messages": [*earlier, plain], **more})
