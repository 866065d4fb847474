"""Every Python block of the README and of the guide runs as it stands."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = FENCE.findall((PACKAGE / "README.md").read_text())
GUIDE = FENCE.findall((PACKAGE.parents[1] / "docs" / "client.md").read_text())
MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}
RESPONSE = {"id": "r", "status": "completed", "output": [MESSAGE]}
OTHERS = {
    "/user/balance": {"is_available": True, "balance_infos": [{"currency": "CNY", "total_balance": "1.50"}]},
    "/v1/models": {"object": "list", "data": [{"id": "m"}]},
    "/tokenize": {"count": 9, "tokens": [1, 2, 3]},
    "/v1/tools/search": {"results": [{"title": "Hello", "url": "https://example.com"}]},
    "/v1/tools/fetch": {"title": "Hello", "markdown": "# Hello"},
}
COMPLETION = {"id": "c", "choices": [{"index": 0, "text": "Hello", "finish_reason": "stop"}]}


@pytest.mark.parametrize("block", BLOCKS + GUIDE)
def test_a_block_of_the_docs_runs(server, kit, monkeypatch, capsys, block):
    def answer(connection):
        request = server.requests[-1]
        if "chat" in request.path and "response_format" in request.json:
            report = '{"steps": ["Hello"], "verdict": "hold"}'
            choice = {"index": 0, "message": {"role": "assistant", "content": report}, "finish_reason": "stop"}
            handler = kit.reply(kit.CHAT | {"choices": [choice]})
        elif "chat" in request.path:
            handler = kit.events(kit.chat_event("Hello", "stop")) if request.json.get("stream") else kit.reply(kit.CHAT)
        elif request.path in OTHERS:
            handler = kit.reply(OTHERS[request.path])
        elif request.path.startswith("/v1/files"):
            file = {"id": "file-1", "filename": "Hello.txt", "data": [{"id": "file-1", "filename": "Hello.txt"}]}
            handler = kit.reply(file)
        elif request.path == "/v1/responses":
            delta = {"type": "response.output_text.delta", "delta": "Hello"}
            last = {"type": "response.completed", "response": RESPONSE}
            handler = kit.events(delta, last, done=False) if request.json.get("stream") else kit.reply(RESPONSE)
        elif request.path.endswith("/completions"):
            handler = kit.reply(COMPLETION)
        elif request.json.get("stream"):
            handler = kit.events(kit.text_event("Hello", "stop", usage=kit.USAGE))
        else:
            handler = kit.reply(kit.GENERATION)
        handler(connection)

    server.script(answer)
    monkeypatch.setenv("DEEPSEEK_BASE_URL", server.url)
    exec(compile(block, "a block of the docs", "exec"), {"__name__": "docs"})
    assert capsys.readouterr().out.strip()


def test_the_docs_have_their_blocks():
    assert len(BLOCKS) == 2
    assert len(GUIDE) >= 2
