"""The examples and the demo run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

from processes import Stack

ROOT = Path(__file__).parent.parent


def run_example(stack: Stack, name: str, typed: str = "") -> str:
    env = {**os.environ, "DEEPSEEK_BASE_URL": stack.url, "DEEPSEEK_API_KEY": stack.user_key}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        env=env,
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_call_prints_an_answer_and_its_tokens(stack: Stack) -> None:
    assert "tokens from tiny]" in run_example(stack, "one_call.py")


def test_the_chat_answers_each_line_and_ends_at_the_end_of_input(stack: Stack) -> None:
    output = run_example(stack, "streaming_chat.py", "Hello\nAnd again\n")
    assert output.count("> ") >= 3


def test_twenty_prompts_are_answered_together(stack: Stack) -> None:
    assert "[20 answers, " in run_example(stack, "concurrent_prompts.py")


def test_the_demo_streams_an_answer_shows_usage_and_exits_with_0() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "stack.py"), "demo"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "quantum" in done.stdout.lower().partition("> explain quantum")[2].partition("\n")[2]
    assert "completion tokens; first token after" in done.stdout
