"""Which server it is decides where a call goes: DeepSeek's `/beta`, our prefix, the words of vLLM and SGLang."""

import pytest

from deepseek_client import DeepSeek
from deepseek_client.settings import read_settings

COMPLETION = {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("base_url", "profile", "is_deepseek", "chat", "beta"),
    [
        ("https://api.deepseek.com", "auto", True, "https://api.deepseek.com/c", "https://api.deepseek.com/beta/c"),
        (
            "https://api.deepseek.com/v1",
            "auto",
            True,
            "https://api.deepseek.com/v1/c",
            "https://api.deepseek.com/beta/c",
        ),
        (
            "https://api.deepseek.com/beta",
            "auto",
            True,
            "https://api.deepseek.com/beta/c",
            "https://api.deepseek.com/beta/c",
        ),
        ("https://proxy/ds/v1", "deepseek", True, "https://proxy/ds/v1/c", "https://proxy/ds/beta/c"),
        ("http://h:8080", "auto", False, "http://h:8080/v1/c", "http://h:8080/beta/c"),
        (
            "https://api.deepseek.com",
            "openai",
            False,
            "https://api.deepseek.com/v1/c",
            "https://api.deepseek.com/beta/c",
        ),
    ],
)
def test_the_host_or_the_profile_says_that_it_is_deepseek_s_cloud(base_url, profile, is_deepseek, chat, beta):
    settings = read_settings(base_url=base_url, profile=profile)
    assert settings.is_deepseek is is_deepseek
    assert (settings.url_of("c"), settings.url_of("/beta/c")) == (chat, beta)


@pytest.mark.parametrize(
    ("told", "sent"),
    [
        ({}, {"thinking": {"type": "disabled"}}),
        ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "enabled"}}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"extra_body": {"thinking": {"type": "enabled"}}}, {"thinking": {"type": "enabled"}}),
    ],
)
async def test_generate_asks_deepseek_not_to_think_unless_told_otherwise(server, connect, kit, told, sent):
    server.script(kit.reply(kit.CHAT))
    client = connect(profile="deepseek", default_model="deepseek-flash")
    assert (await kit.settle(client.generate("Hi", **told))).text == "Hello"
    (request,) = server.requests
    assert request.path == "/chat/completions"
    assert request.json == {"messages": kit.MESSAGES, "max_tokens": 512, "model": "deepseek-flash"} | sent


async def test_generate_streams_from_deepseek_without_thinking(server, connect, kit):
    server.script(kit.events(kit.chat_event("Hel"), kit.chat_event("lo", "stop")))
    client = connect(profile="deepseek", default_model="m")
    async with kit.entered(client.generate_stream("Hi")) as stream:
        assert await kit.collect(stream) == ["Hel", "lo"]
    assert server.requests[0].json["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize(
    ("profile", "path"),
    [("deepseek", "/beta/completions"), ("gateway", "/v1/completions"), ("openai", "/v1/completions")],
)
async def test_fim_goes_where_the_server_has_it(server, connect, kit, profile, path):
    server.script(kit.reply(COMPLETION), kit.events(COMPLETION), kit.reply(COMPLETION))
    client = connect(profile=profile, default_model="m")
    answer = await kit.settle(client.fim.create(prompt="a", suffix="c", max_tokens=9))
    assert answer.choices[0].text == "b"
    stream = await kit.settle(client.fim.create(prompt="a", suffix="c", stream=True))
    assert [chunk.choices[0].text for chunk in await kit.collect(stream)] == ["b"]
    await kit.settle(client.completions.create(prompt="a"))
    assert {request.path for request in server.requests} == {path}
    assert server.requests[0].json == {"prompt": "a", "suffix": "c", "max_tokens": 9, "model": "m"}
    assert server.requests[1].json == {"prompt": "a", "suffix": "c", "stream": True, "model": "m"}


ANSWER = {"role": "assistant", "content": "b"}
DEEPSEEK_WAY = {"role": "assistant", "content": "a", "prefix": True}
OTHERS_WAY = {"continue_final_message": True, "add_generation_prompt": False}


@pytest.mark.parametrize(
    ("profile", "path", "last", "more"),
    [
        ("deepseek", "/beta/chat/completions", DEEPSEEK_WAY, {}),
        ("gateway", "/v1/chat/completions", DEEPSEEK_WAY, {}),
        ("openai", "/v1/chat/completions", {"role": "assistant", "content": "a"}, OTHERS_WAY),
        ("auto", "/v1/chat/completions", DEEPSEEK_WAY, OTHERS_WAY),
    ],
)
async def test_a_prefix_is_continued_in_the_server_s_own_words(server, connect, kit, profile, path, last, more):
    server.script(kit.reply(kit.CHAT | {"choices": [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]}))
    client = connect(profile=profile, default_model="m")
    answer = await kit.settle(client.chat.completions.continue_prefix(messages=kit.MESSAGES, prefix="a", stop=["."]))
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("ab", None)
    (request,) = server.requests
    assert request.path == path
    assert request.json == {"messages": [*kit.MESSAGES, last], "stop": ["."], "model": "m"} | more


async def test_the_reasoning_before_a_prefix_goes_along_and_comes_back(server, connect, kit):
    message = ANSWER | {"reasoning_content": None}
    server.script(kit.reply(kit.CHAT | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))
    client = connect(profile="deepseek", default_model="m")
    answer = await kit.settle(
        client.chat.completions.continue_prefix(messages=kit.MESSAGES, prefix="a", reasoning="because")
    )
    assert server.requests[0].json["messages"][-1] == DEEPSEEK_WAY | {"reasoning_content": "because"}
    assert answer.choices[0].message.to_wire() == {
        "role": "assistant",
        "content": "ab",
        "reasoning_content": "because",
    }


def _tool(strict):
    function = {"name": "f", "parameters": {"type": "object"}} | ({"strict": True} if strict else {})
    return {"type": "function", "function": function}


@pytest.mark.parametrize(
    ("profile", "tools", "path"),
    [
        ("deepseek", [_tool(True), _tool(True)], "/beta/chat/completions"),
        ("deepseek", [_tool(True), _tool(False)], "/chat/completions"),
        ("deepseek", None, "/chat/completions"),
        ("gateway", [_tool(True)], "/v1/chat/completions"),
    ],
)
async def test_strict_tools_go_under_beta_at_deepseek_only(server, connect, kit, profile, tools, path):
    server.script(kit.reply(kit.CHAT), kit.events(kit.chat_event("x", "stop")))
    client = connect(profile=profile, default_model="m")
    await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, tools=tools))
    await kit.collect(await kit.settle(client.chat.completions.create(messages=kit.MESSAGES, tools=tools, stream=True)))
    assert [request.path for request in server.requests] == [path, path]


def test_options_may_change_the_profile():
    with DeepSeek(base_url="http://h/v1") as client:
        assert "profile must" not in repr(client.with_options(profile="deepseek"))
