"""Requests of coding agents as they look on the wire, with all that they send unasked: nothing of it is refused."""

from typing import Any

from deepseek_gateway.testing.stack import Stack

CLAUDE_CODE: dict[str, Any] = {
    "model": "fake-model",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "billing"},
        {"type": "text", "text": "You are", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "t1", "name": "Read", "input": {"p": 1}, "caller": {"type": "direct"}},
                {"type": "tool_use", "id": "t2", "name": "Read", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "file"}]},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "no such file"},
                {"type": "text", "text": "go on"},
            ],
        },
    ],
    "tools": [
        {
            "name": "Read",
            "description": "reads",
            "input_schema": {"type": "object", "properties": {}, "additionalProperties": False},
            "cache_control": {"type": "ephemeral"},
            "eager_input_streaming": True,
        }
    ],
    "metadata": {"user_id": "user_1__session_2"},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}
CODEX: dict[str, Any] = {
    "model": "fake-model",
    "instructions": "You are",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": None, "encrypted_content": None},
        {"type": "function_call", "id": "fc", "name": "shell", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "done"},
    ],
    "tools": [{"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": None,
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "text": {"verbosity": "low"},
}


async def test_claude_codes_request_is_taken_whole(stack: Stack) -> None:
    beta = "claude-code-20250219,context-management-2025-06-27"
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": beta}
    reply = await stack.caller.post("/v1/messages?beta=true", CLAUDE_CODE, headers)
    assert (reply.status, reply.events[-1].split("\n")[0]) == (200, "event: message_stop")
    sent = stack.engine.bodies[-1]
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert sent["messages"][2]["reasoning_content"] == "hm"
    assert sent["messages"][4]["content"] == "Error: no such file"
    assert sent["reasoning_effort"] == "high"
    assert {"system", "metadata", "thinking", "output_config", "context_management"}.isdisjoint(sent)


async def test_codex_request_is_taken_whole(stack: Stack) -> None:
    reply = await stack.caller.post("/v1/responses", CODEX, {"openai-beta": "responses=experimental"})
    assert (reply.status, reply.events[-1].split("\n")[0]) == (200, "event: response.completed")
    sent = stack.engine.bodies[-1]
    assert [message["role"] for message in sent["messages"]] == ["system", "system", "user", "assistant", "tool"]
    assert "reasoning_content" not in sent["messages"][3]
    assert {"store", "include", "text", "prompt_cache_key", "reasoning", "input"}.isdisjoint(sent)
    tools = [{"type": "custom", "name": "patch"}]
    refused = await stack.caller.post("/v1/responses", {**CODEX, "tools": tools})
    assert (refused.status, refused.error["param"]) == (400, "tools[0].type")
    assert "takes free text: use 'function'" in refused.error["message"]
