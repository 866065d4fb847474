"""A chat in the browser: a Starlette app that streams answers as they are made. Leaving the page stops the model.

Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them, and `pip install starlette uvicorn`.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from deepseek_client import AsyncDeepSeek, DeepSeekError

PAGE = """\
<!doctype html><meta charset=utf-8><title>Chat</title>
<style>body{font:16px system-ui;max-width:42rem;margin:2rem auto}pre{white-space:pre-wrap;font:inherit}
.user{color:#666}input{width:100%;font:inherit;padding:.5rem;box-sizing:border-box}</style>
<main id=log></main><form id=form><input id=text autofocus placeholder="Ask something"></form>
<script>
const messages = [], log = document.getElementById("log"), text = document.getElementById("text");
function show(role) {
  const line = document.createElement("pre"); line.className = role; log.append(line); return line;
}
document.getElementById("form").onsubmit = async (event) => {
  event.preventDefault();
  messages.push({role: "user", content: text.value}); show("user").textContent = text.value; text.value = "";
  const line = show("assistant"), headers = {"content-type": "application/json"};
  const answer = await fetch("chat", {method: "POST", headers, body: JSON.stringify(messages)});
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part; !(part = await reader.read()).done; ) line.textContent += part.value;
  messages.push({role: "assistant", content: line.textContent});
};
</script>"""


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """One client for the life of the app."""
    async with AsyncDeepSeek() as client:
        app.state.client = client
        yield


async def page(_: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE)


async def chat(request: Request) -> StreamingResponse:
    """The answer to a conversation, as text that comes piece by piece."""
    client: AsyncDeepSeek = request.app.state.client
    return StreamingResponse(pieces(client, await request.json()), media_type="text/plain; charset=utf-8")


async def pieces(client: AsyncDeepSeek, messages: list[dict[str, str]]) -> AsyncIterator[str]:
    """The answer's text; a browser that leaves ends the stream, and so the work at the server."""
    try:
        async with await client.chat.completions.create(messages=messages, max_tokens=512, stream=True) as stream:
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content
    except DeepSeekError as error:
        yield f"\n[{error}]"


app = Starlette(routes=[Route("/", page), Route("/chat", chat, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=8000)
