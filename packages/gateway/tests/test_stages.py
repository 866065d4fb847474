"""What stages between the usage tap and the caller may do, and that the books stay exact."""

import json

import pytest

from deepseek_gateway.relay.stages import EndAnswer, Stage, StageChain, split_events
from deepseek_gateway.routes.generation import GenerationRoute
from deepseek_gateway.testing.stack import Stack


class Upper:
    """A stage that shouts, and says each event twice."""

    def pass_on(self, frame: bytes) -> bytes:
        return frame.replace(b"w", b"W") * 2

    def body(self, body: bytes) -> bytes:
        return body.replace(b"w", b"W")


class EndAt:
    """A stage that ends the answer at a word."""

    def __init__(self, word: bytes) -> None:
        self.word = word

    def pass_on(self, frame: bytes) -> bytes:
        if self.word in frame:
            raise EndAnswer(cut_out(frame, self.word), "content_filter")
        return frame

    def body(self, body: bytes) -> bytes:
        if self.word in body:
            raise EndAnswer(body.replace(b'"stop"', b'"content_filter"').replace(self.word, b"***"), "content_filter")
        return body


def cut_out(frame: bytes, word: bytes) -> bytes:
    chunk = json.loads(frame.removeprefix(b"data: "))
    chunk.pop("usage", None)
    for choice in chunk.get("choices", [chunk]):
        choice["finish_reason"] = "content_filter"
    return b"data: " + json.dumps(chunk).encode().replace(word, b"") + b"\n\n"


def use(monkeypatch: pytest.MonkeyPatch, *stages: Stage) -> None:
    monkeypatch.setattr(GenerationRoute, "_stages", lambda *_: stages)


PATHS = {
    "/v1/generate": {"prompt": "a b c"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a b c"}]},
    "/v1/completions": {"prompt": "a b c"},
}


def test_events_of_one_stage_come_one_by_one_to_the_next() -> None:
    seen: list[bytes] = []

    class Note(Upper):
        def pass_on(self, frame: bytes) -> bytes:
            seen.append(frame)
            return frame

    assert StageChain([Upper(), Note()]).pass_on([b"data: w\n\n", b"", b"data: x\n\n"]) == (
        b"data: W\n\ndata: W\n\ndata: x\n\ndata: x\n\n"
    )
    assert seen == [b"data: W\n\n", b"data: W\n\n", b"data: x\n\n", b"data: x\n\n"]


def test_after_an_end_only_later_stages_see_the_closing() -> None:
    chain = StageChain([Upper(), EndAt(b"W3"), Upper()])
    assert chain.pass_on([b'data: {"a":"w1"}\n\n', b'data: {"a":"w3"}\n\n', b"data: never\n\n"]).count(b"W1") == 4
    assert chain.ended is not None
    assert chain.pass_on([b"data: later\n\n"]) == b""
    assert chain.finish(b"data: [DONE]\n\n") == b"data: [DONE]\n\n" * 2


@pytest.mark.parametrize("data", [b"", b"a\n\n", b"a\n\nb\n\n", b": c\n\ndata: x\n\n"])
def test_split_events_loses_nothing(data: bytes) -> None:
    assert b"".join(split_events(data)) == data


@pytest.mark.parametrize("path", PATHS)
async def test_stages_change_streams_and_bodies_alike(stack: Stack, monkeypatch, path: str) -> None:
    use(monkeypatch, Upper())
    whole = await stack.caller.post(path, PATHS[path])
    assert "W8" in whole.body.decode()
    streamed = await stack.caller.post(path, {**PATHS[path], "stream": True})
    assert "W8" in streamed.body.decode()
    assert "w8" not in streamed.body.decode()
    assert streamed.events[-2:] == ["data: [DONE]"] * 2
    assert [row.accuracy for row in await stack.running.rows(2)] == ["exact"] * 2


@pytest.mark.parametrize("wants_usage", [True, False])
@pytest.mark.parametrize("path", PATHS)
async def test_a_stage_ends_a_stream_and_the_engine(stack: Stack, monkeypatch, path: str, wants_usage: bool) -> None:
    use(monkeypatch, EndAt(b"w3"))
    stack.engine.allow(3)
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    body = {**PATHS[path], "stream": True, **options, "fake": {"tokens": 100, "gated": True}}
    reply = await stack.caller.post(path, body)
    assert reply.status == 200
    assert "w2" in reply.body.decode()
    assert "w3" not in reply.body.decode()
    assert reply.events[-1] == "data: [DONE]"
    reasons = [choice.get("finish_reason") for chunk in reply.chunks for choice in chunk.get("choices", [chunk])]
    assert reasons[-1] == "content_filter"
    assert reply.body.count(b'"usage"') == (1 if wants_usage or path == "/v1/generate" else 0)
    row = await stack.row()
    assert (row.status, row.end_reason, row.http_status, row.accuracy) == ("finished", "content_filter", 200, "exact")
    (done,) = stack.engine.finished
    assert done.finish == "abort"
    assert (row.prompt_tokens, row.completion_tokens) == (done.counts.prompt, done.counts.completion)


async def test_a_stage_may_end_a_stream_at_its_first_word_and_after_the_engine_is_done(
    stack: Stack, monkeypatch
) -> None:
    for word in (b"w1", b"[DONE]"):
        use(monkeypatch, EndAt(word))
        monkeypatch.setattr(f"{__name__}.cut_out", lambda *_: b'data: {"text":"","finish_reason":"content_filter"}\n\n')
        reply = await stack.caller.post("/v1/generate", {**PATHS["/v1/generate"], "stream": True})
        assert reply.events[-1] == "data: [DONE]"
        assert (await stack.row()).end_reason == "content_filter"
        assert (await stack.row()).accuracy == "exact"
    rows = await stack.running.rows(2)
    assert sum(row.completion_tokens for row in rows) == stack.engine.truth.completion


@pytest.mark.parametrize("path", PATHS)
async def test_a_stage_ends_an_answer_in_one_piece(stack: Stack, monkeypatch, path: str) -> None:
    use(monkeypatch, EndAt(b"w3"), Upper())
    reply = await stack.caller.post(path, {**PATHS[path], "fake": {"tokens": 4}})
    assert reply.status == 200
    assert "W2" in reply.body.decode()
    assert "w3" not in reply.body.decode().lower()
    row = await stack.row()
    assert (row.status, row.end_reason, row.completion_tokens) == ("finished", "content_filter", 4)
