"""What type checkers must refuse: each line marked `# wrong` and no other; checked by test_typing.py, never run."""

from deepseek_client import AsyncDeepSeek, DeepSeek, HTTPRequest, HTTPResponse
from deepseek_client.middleware import Send


def log(request: HTTPRequest, send: Send) -> HTTPResponse:
    return send(request)


async def key() -> str:
    return "key"


client = DeepSeek()
client.generate("Hi", temprature=0.5)  # wrong
client.generate("Hi", temperature="hot")  # wrong
client.chat.completions.create(messages=[], stream="yes")  # wrong
message = client.chat.completions.create(messages=[]).choices[0].message.contents  # wrong
client.with_raw_response.generate(5)  # wrong
DeepSeek(profile="other")  # wrong
DeepSeek(api_key=key)  # wrong
AsyncDeepSeek(middleware=[log])  # wrong
