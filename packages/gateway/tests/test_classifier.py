"""A classifier of texts: OpenAI's /v1/moderations, asked before requests go on, and after answers."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from deepseek_gateway.edge.body import read_body
from deepseek_gateway.edge.respond import send_body
from deepseek_gateway.guard.moderations import ClassifierError, categories_of
from deepseek_gateway.storage.words import ReviewRow
from deepseek_gateway.testing.caller import until
from deepseek_gateway.testing.serving import Served, serving
from deepseek_gateway.testing.stack import Stack, running_stack


@dataclass
class Moderator:
    """Flags what has the word `weapon`."""

    status: int = 200
    inputs: list[list[str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads(await read_body(scope, receive, 2**20, 60))
        assert scope["path"] == "/v1/moderations"
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode() or None)
        self.bodies.append(body)
        self.inputs.append(body["input"])
        await self.gate.wait()
        results = [
            {"flagged": "weapon" in text, "categories": {"violence": "weapon" in text, "hate": False}}
            for text in body["input"]
        ]
        await send_body(send, self.status, json.dumps({"id": "m", "results": results}).encode())


@pytest.fixture
async def moderator() -> AsyncGenerator[tuple[Moderator, Served]]:
    app = Moderator()
    app.gate.set()
    async with serving(app) as served:
        yield app, served


async def reviews(stack: Stack, number: int) -> list[ReviewRow]:
    """What waits for a person, once there is so much."""
    words = stack.gateway.store.words
    found: list[ReviewRow] = []

    def look() -> bool:
        stack.gateway.words.queue.flush()
        found[:] = words.reviews(None, limit=10)
        return len(found) >= number

    await until(look)
    return found


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/generate"])
async def test_what_is_flagged_is_refused_before_an_engine_sees_it(
    state_dir: Path, moderator: tuple[Moderator, Served], path: str
) -> None:
    app, served = moderator
    settings = {"classifier_url": f"{served.url}/v1/moderations", "classifier_key": "s3cret", "classifier_model": "m-1"}
    async with running_stack(state_dir, classifier_mode="block", **settings) as stack:
        texts = {"/v1/generate": "prompt", "/v1/responses": "input"}
        for text, status in (("a weapon", 400), ("a flower", 200)):
            said = {texts[path]: text} if path in texts else {"messages": [{"role": "user", "content": text}]}
            reply = await stack.caller.post(path, {"model": "fake-model", "max_tokens": 5, **said})
            assert reply.status == status
        assert len(stack.engine.finished) == 1
        first = (await reviews(stack, 1))[0]
        assert (first.rule, first.category, first.level, first.direction) == ("classifier", "violence", "block", "in")
        rows = await stack.running.rows()
    assert [row.status for row in rows] == ["finished"]
    assert app.keys[0] == "Bearer s3cret"
    assert app.bodies[0]["model"] == "m-1"


@pytest.mark.parametrize("stream", [True, False])
async def test_on_the_side_nothing_waits_and_answers_are_judged_too(
    state_dir: Path, moderator: tuple[Moderator, Served], stream: bool
) -> None:
    app, served = moderator
    app.gate.clear()
    async with running_stack(state_dir, classifier_url=f"{served.url}/v1/moderations") as stack:
        body = {
            "messages": [{"role": "user", "content": "a weapon"}], "stream": stream,
            "fake": {"deltas": [{"content": "your wea"}, {"content": "pon"}]},
        }  # fmt: skip
        assert (await stack.caller.post("/v1/chat/completions", body)).status == 200  # nobody has judged yet
        app.gate.set()
        found = await reviews(stack, 2)
        assert {(row.direction, row.level, row.category) for row in found} == {
            ("in", "review", "violence"),
            ("out", "review", "violence"),
        }
    assert "your weapon" in {text for texts in app.inputs for text in texts}


@pytest.mark.parametrize(("on_failure", "status"), [("closed", 503), ("open", 200)])
async def test_without_a_judgement_the_policy_decides(
    state_dir: Path, moderator: tuple[Moderator, Served], on_failure: str, status: int
) -> None:
    app, served = moderator
    app.status = 500
    settings = {"classifier_url": f"{served.url}/v1/moderations", "classifier_mode": "block"}
    async with running_stack(state_dir, classifier_on_failure=on_failure, **settings) as stack:
        reply = await stack.caller.post(body={"prompt": "a flower"})
        assert reply.status == status
        if status == 503:
            assert (reply.error["code"], reply.headers["retry-after"]) == ("content_filter_unavailable", "5")
        assert any("classifier" in fault for fault in stack.gateway.faults())
        app.status = 200
        assert (await stack.caller.post(body={"prompt": "a flower"})).status == 200
        assert not any("classifier" in fault for fault in stack.gateway.faults())


async def test_a_judgement_that_does_not_come_ends_at_the_deadline(
    state_dir: Path, moderator: tuple[Moderator, Served]
) -> None:
    app, served = moderator
    app.gate.clear()
    settings = {"classifier_url": f"{served.url}/v1/moderations", "classifier_mode": "block"}
    async with running_stack(state_dir, classifier_timeout_s=0.05, **settings) as stack:
        assert (await stack.caller.post(body={"prompt": "a"})).status == 503
        app.gate.set()


@pytest.mark.parametrize("prompt", ["x" * 140_000, [1, 2, 3]])
async def test_what_cannot_be_judged_whole_does_not_pass(
    state_dir: Path, moderator: tuple[Moderator, Served], prompt: object
) -> None:
    _, served = moderator
    settings = {"classifier_url": f"{served.url}/v1/moderations", "classifier_mode": "block"}
    async with running_stack(state_dir, **settings) as stack:
        reply = await stack.caller.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
        assert reply.status in {400, 503}
        assert not stack.engine.finished


def test_long_texts_are_judged_in_pieces() -> None:
    result = {"flagged": False, "categories": {"hate": False, "violence": False}}
    flagged = {"flagged": True, "categories": {"hate": True, "sexual/minors": True, "violence": None}}
    assert categories_of(json.dumps({"results": [result, result]}).encode(), 2) is None
    assert categories_of(json.dumps({"results": [result, flagged]}).encode(), 2) == "hate,sexual/minors"
    assert categories_of(b'{"results": [{"flagged": true}]}', 1) == "flagged"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"results": []}', b'{"results": [{}]}', b'{"results": [{"flagged": "?"}]}']
)
def test_an_answer_that_judges_nothing_is_none(body: bytes) -> None:
    with pytest.raises(ClassifierError):
        categories_of(body, 1)
