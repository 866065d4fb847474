"""Every Python block of the README runs as it stands."""

import re
from pathlib import Path

import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_readme_runs(server, kit, monkeypatch, capsys, number):
    def answer(connection):
        request = server.requests[-1]
        if "chat" in request.path and "response_format" in request.json:
            report = '{"steps": ["Hello"], "verdict": "hold"}'
            choice = {"index": 0, "message": {"role": "assistant", "content": report}, "finish_reason": "stop"}
            handler = kit.reply(kit.CHAT | {"choices": [choice]})
        elif "chat" in request.path:
            handler = kit.events(kit.chat_event("Hello", "stop")) if request.json.get("stream") else kit.reply(kit.CHAT)
        elif request.json.get("stream"):
            handler = kit.events(kit.text_event("Hello", "stop", usage=kit.USAGE))
        else:
            handler = kit.reply(kit.GENERATION)
        handler(connection)

    server.script(answer)
    monkeypatch.setenv("DEEPSEEK_BASE_URL", server.url)
    exec(compile(BLOCKS[number], "README.md", "exec"), {"__name__": "readme"})
    assert "Hello" in capsys.readouterr().out


def test_the_readme_has_its_blocks():
    assert len(BLOCKS) == 7
