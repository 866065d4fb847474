"""What the package may cost, in things that can be counted: no clock here. `benchmarks/budgets.py` has the timings."""

import subprocess
import sys

import pytest

IMPORTED_BY_A_CLIENT = {
    "deepseek_client",
    "deepseek_client.client",
    "deepseek_client.deferred",
    "deepseek_client.errors",
    "deepseek_client.settings",
}
HEAVY = (
    "httpx",
    "httpx2",
    "httpcore",
    "pydantic",
    "pydantic_core",
    "anyio",
    "asyncio",
    "ssl",
    "logging",
    "rich",
    "openai",
)


def modules_after(code):
    """All modules of a fresh process that has run some code."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("cls", ["DeepSeek", "AsyncDeepSeek"])
def test_importing_and_making_a_client_loads_five_small_modules_of_ours_and_nothing_heavy(cls):
    loaded = modules_after(f"from deepseek_client import {cls}, APIStatusError, Timeout\n{cls}(base_url='http://h')")
    assert {name for name in loaded if name.startswith("deepseek_client")} == IMPORTED_BY_A_CLIENT
    assert loaded.isdisjoint(HEAVY)


def test_what_a_program_does_not_use_is_not_loaded_by_its_first_call():
    loaded = modules_after(
        "from deepseek_client import DeepSeek\n"
        "from deepseek_client.testing import FakeServer, chat_completion, reply\n"
        "with FakeServer() as server:\n"
        "    server.script(reply(chat_completion()))\n"
        "    DeepSeek(base_url=server.url).chat.completions.create(model='m', messages=[])"
    )
    unused = ("cli", "otel", "files", "resources.files", "resources.responses", "resources.tools", "terminal")
    assert loaded.isdisjoint(f"deepseek_client.{name}" for name in unused)
