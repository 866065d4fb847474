"""run_tools through the gateway: to an engine that follows a script, and to the real one, whose grammar makes calls."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from deepseek_client import AsyncDeepSeek, tool
from deepseek_client.asgi import AsyncASGITransport
from deepseek_engine.testing.checkpoints import TinyModel, write_tiny_checkpoint
from deepseek_gateway.app import create_app
from deepseek_gateway.testing.stack import running_gateway, running_stack
from processes import Server, program

MESSAGES = [{"role": "user", "content": "Is 300750 a buy?"}]
TEMPLATE = """\
{% if tools %}{{ tools | length }}{% endif %}
{%- for message in messages %}{{ message.reasoning_content or '' }}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments }}{% endfor %}
{%- endfor %}
{%- if thinking is defined %}{{ '<think>' if thinking else '</think>' }}{% endif %}"""


class Verdict(BaseModel):
    verdict: Literal["buy", "hold"]


@contextlib.asynccontextmanager
async def client_of(gateway: Any, key: str) -> AsyncGenerator[AsyncDeepSeek]:
    async with AsyncDeepSeek(transport=AsyncASGITransport(create_app(gateway)), api_key=key) as client:
        yield client


def calling(reasoning: str, name: str, **arguments: object) -> dict[str, Any]:
    """A script of the fake engine: think, and call one tool."""
    call = {"index": 0, "id": f"call-{name}", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"deltas": [{"reasoning_content": reasoning}, {"tool_calls": [call]}], "finish": "tool_calls"}


async def test_reasoning_goes_back_without_loss_and_thinking_and_effort_reach_the_engine() -> None:
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        async with running_stack(Path(folder) / "state") as stack, client_of(stack.gateway, stack.caller.key) as client:
            engine = stack.engine
            script = [
                calling("First the price. 世界\n", "price", ticker="300750"),
                calling("Then the debt.", "debt", ticker="300750"),
                calling("At last the news.", "news", ticker="300750"),
                {"deltas": [{"reasoning_content": "Enough."}, {"content": "Buy."}], "finish": "stop"},
            ]

            async def next_answer(said: str) -> str:
                engine.script = script.pop(0)
                return said

            @tool
            async def price(ticker: str) -> str:
                return await next_answer(f"{ticker} costs 251.8")

            @tool
            async def debt(ticker: str) -> str:
                return await next_answer("low")

            @tool
            async def news(ticker: str) -> str:
                return await next_answer("good")

            await next_answer("")
            run = await client.chat.completions.run_tools(
                messages=MESSAGES, tools=[price, debt, news], thinking={"type": "enabled"}, reasoning_effort="high"
            )
            assert (run.text, run.rounds) == ("Buy.", 4)
            assert [(body["thinking"], body["reasoning_effort"]) for body in engine.bodies] == [
                ({"type": "enabled"}, "high")
            ] * 4
            received = engine.bodies[-1]["messages"]
            assert [message.get("reasoning_content") for message in received if message["role"] == "assistant"] == [
                "First the price. 世界\n",
                "Then the debt.",
                "At last the news.",
            ]
            assert [message["content"] for message in received if message["role"] == "tool"] == [
                "300750 costs 251.8",
                "low",
                "good",
            ]
            ids = [call["id"] for message in received for call in message.get("tool_calls", ())]
            assert ids == [message["tool_call_id"] for message in received if message["role"] == "tool"]
            assert run.messages[-1]["reasoning_content"] == "Enough."
            engine.script = {}
            await client.chat.completions.create(messages=MESSAGES, thinking={"type": "disabled"})
            assert engine.bodies[-1]["thinking"] == {"type": "disabled"}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """The real engine on a tiny model with random weights, whose template knows tools and thinking."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("thinker") / "tiny", TinyModel())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text().replace("<|endoftext|>", "<think>").replace("<|im_start|>", "</think>")
        (folder / name).write_text(text)
    template = folder / "tools.jinja"
    template.write_text(TEMPLATE)
    options = ["--model-path", str(folder), "--chat-template", str(template), "--chat-format", "deepseek-r1"]
    server = Server([program("deepseek-server"), *options, "--port", "0"], folder / "log")
    server.start()
    server.url()
    yield server
    assert server.stop() == 0


@contextlib.asynccontextmanager
async def stack_of(engine: Server) -> AsyncGenerator[AsyncDeepSeek]:
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        async with (
            running_gateway(Path(folder) / "state", await asyncio.to_thread(engine.url)) as running,
            client_of(running.gateway, running.key()) as client,
        ):
            yield client


async def test_a_three_tool_task_ends_in_an_answer_of_the_asked_for_type(thinker: Server) -> None:
    """The weights are random: the engine's grammar makes calls and answer right, a bias on letters says which comes."""
    called: list[tuple[str, str]] = []
    bias: dict[str, float] = {}

    def steer(*letters: str) -> None:
        bias.clear()
        bias.update({token(letter): 100 if letter in letters else -100 for letter in "<{abc"})

    @tool
    def alpha(x: Literal["1", "2"]) -> str:
        called.append(("alpha", x))
        steer("<", "b")
        return "next is beta"

    @tool
    def beta(y: Literal["3", "4"], z: Literal["5"]) -> str:
        called.append(("beta", y + z))
        steer("<", "c")
        return "next is chi"

    @tool
    def chi(items: Literal["6", "7"]) -> str:
        called.append(("chi", items))
        steer("{")
        return "that was all"

    schema = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": Verdict.model_json_schema()}}
    steer("<", "a")
    async with stack_of(thinker) as client:
        run = await client.chat.completions.run_tools(
            messages=MESSAGES,
            tools=[alpha, beta, chi],
            response_format=schema,
            thinking={"type": "disabled"},
            logit_bias=bias,
            max_tokens=600,
            temperature=0.0,
            extra_body={"parallel_tool_calls": False},
        )
    assert [name for name, _ in called] == ["alpha", "beta", "chi"]
    assert called[0][1] in ("1", "2")
    assert called[1][1] in ("35", "45")
    assert called[2][1] in ("6", "7")
    Verdict.model_validate_json(run.text)
    assert [message["role"] for message in run.messages] == ["user", *["assistant", "tool"] * 3, "assistant"]


def token(letter: str) -> str:
    """The id of a letter in a tiny checkpoint: printable ASCII comes first, in its order."""
    return str(ord(letter) - ord("!"))


@pytest.mark.parametrize("budget", [0, 8])
async def test_thinking_is_switched_at_the_engine(thinker: Server, budget: int) -> None:
    thinking = {"type": "enabled", "budget_tokens": budget} if budget else {"type": "disabled"}
    async with stack_of(thinker) as client:
        answer = await client.chat.completions.parse(
            messages=MESSAGES, response_model=Verdict, thinking=thinking, max_tokens=100, seed=1
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == budget
    assert bool(answer.completion.choices[0].message.reasoning_content) == bool(budget)
