"""`nox -s demo` and `nox -s up`: the whole stack on this machine, with the embedded model.

`demo` streams one answer and stops; `up` stays until Ctrl-C. Both use the two things that a user has: the command
`deepseek-gateway up` and the SDK.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek_client import DeepSeek

PROMPT = "Explain quantum computing in two sentences."
STOP_TIMEOUT_S = 60


@dataclass(frozen=True)
class Stack:
    """A running stack: where it is, and the keys made for this run."""

    process: subprocess.Popen[str]
    url: str
    user_key: str
    state: str


@contextmanager
def running_stack(*arguments: str) -> Generator[Stack]:
    """Start `deepseek-gateway up` with fresh state; stop it at the end and insist that it exits with 0."""
    with tempfile.TemporaryDirectory(prefix="deepseek-") as state:
        program = Path(sys.executable).with_name("deepseek-gateway")
        command = [str(program), "up", "--json", "--state", state, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if not (line := process.stdout.readline()):
                    raise SystemExit(f"deepseek-gateway up ended with status {process.wait()}")
                ready = json.loads(line)
                yield Stack(process, ready["url"], ready["user_key"], state)
            finally:
                process.send_signal(signal.SIGTERM)
                status = process.wait(STOP_TIMEOUT_S)
        if status != 0:
            raise SystemExit(f"deepseek-gateway up ended with status {status}")


def demo() -> None:
    """Stream one answer word by word, then show what it cost."""
    started = time.perf_counter()
    with running_stack("--port", "0", "--log-level", "warning") as stack:
        print(f"stack up at {stack.url} after {time.perf_counter() - started:.1f} s\n\n> {PROMPT}")
        client = DeepSeek(api_key=stack.user_key, base_url=stack.url)
        asked = time.perf_counter()
        first_text = 0.0
        with client.generate_stream(PROMPT, max_tokens=160, temperature=0.0) as stream:
            for text in stream:
                first_text = first_text or time.perf_counter()
                print(text, end="", flush=True)
        ended = time.perf_counter()
        usage = stream.usage
        assert usage is not None, "the stream ended without usage"
        rate = (usage.completion_tokens - 1) / (ended - first_text)
        print(
            f"\n\nfinish_reason {stream.finish_reason}; {usage.prompt_tokens} prompt + {usage.completion_tokens} "
            f"completion tokens; first token after {(first_text - asked) * 1000:.0f} ms, then {rate:.1f} tokens/s"
        )
        program = Path(sys.executable).with_name("deepseek-gateway")
        print("\nThe gateway's ledger:", flush=True)
        subprocess.run([program, "usage", "--state", stack.state], check=True)


def up(*arguments: str) -> None:
    """Keep the stack up and say how to use it."""
    try:
        with running_stack(*arguments) as stack:
            print(how_to_use(stack), flush=True)
            stack.process.wait()
    except KeyboardInterrupt:
        print("\nstopped")


def how_to_use(stack: Stack) -> str:
    """Lines to paste into another terminal."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": 160, "stream": True})
    return f"""
The stack is up at {stack.url}. In another terminal:

  export DEEPSEEK_BASE_URL={stack.url}
  export DEEPSEEK_API_KEY={stack.user_key}

  .venv/bin/deepseek chat
  .venv/bin/python examples/one_call.py
  curl -N {stack.url}/v1/generate -H "Authorization: Bearer {stack.user_key}" \\
    -H 'Content-Type: application/json' -d '{body}'

The key was made for this run. Ctrl-C stops everything."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verb, *rest = sys.argv[1:] or ["demo"]
    {"demo": demo, "up": up}[verb](*rest)
