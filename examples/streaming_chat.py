"""A chat in the terminal: answers appear as they are made, Ctrl-C cuts one short, an empty line ends it.

Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

from deepseek_client import ChatMessage, DeepSeek


def main() -> None:
    """Read a line, stream the answer, remember both."""
    messages: list[ChatMessage] = []
    with DeepSeek() as client:
        while question := read_line():
            messages.append(ChatMessage(role="user", content=question))
            messages.append(ChatMessage(role="assistant", content=stream_answer(client, messages)))


def stream_answer(client: DeepSeek, messages: list[ChatMessage]) -> str:
    """Print one answer piece by piece; leaving the stream early tells the server to stop working on it."""
    pieces: list[str] = []
    with client.chat.completions.create(messages=messages, max_tokens=256, stream=True) as stream:
        try:
            for chunk in stream:
                for choice in chunk.choices:
                    pieces.append(choice.delta.content or "")
                    print(pieces[-1], end="", flush=True)
        except KeyboardInterrupt:
            print(" [cut short]", end="")
    print()
    return "".join(pieces)


def read_line() -> str:
    """A line from the user; empty at the end of the input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


if __name__ == "__main__":
    main()
