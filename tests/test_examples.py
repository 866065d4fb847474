"""The examples and the demo run as they stand."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deepseek_client.asgi import AsyncASGITransport
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


def test_the_finance_report_ends_in_a_numbered_chain_and_a_conclusion(stack: Stack) -> None:
    output = run_example(stack, "finance_report.py")
    numbers = re.findall(r"^(\d)\. ", output, re.MULTILINE)
    assert len(numbers) >= 3
    assert re.search(r"^Conclusion \((positive|neutral|negative)\): ", output, re.MULTILINE)


def test_the_contract_review_names_a_risk_for_every_clause(stack: Stack) -> None:
    output = run_example(stack, "contract_review.py")
    found = re.findall(r"^\[(?:none|low|medium|high)\] clause (\S+) against (?:R[1-4]|no rule): ", output, re.MULTILINE)
    assert sorted(found) == ["4.2", "7.1", "9.3"]
    assert "of 3 reviewed" in output


def test_every_headline_of_the_batch_is_scored(stack: Stack) -> None:
    assert "[6 of 6 scored; mean " in run_example(stack, "news_sentiment.py")


def test_the_imaging_report_is_a_table_with_a_notice(stack: Stack) -> None:
    output = run_example(stack, "imaging_report.py")
    assert re.search(r"^[! ] .+ \| (\d+ mm|-) \| ", output, re.MULTILINE | re.DOTALL)
    assert re.search(r"^Priority: (routine|soon|urgent)$", output, re.MULTILINE)
    assert "not a diagnosis" in output


def test_the_symptom_conversation_shows_its_notice_each_turn_and_knows_emergencies(stack: Stack) -> None:
    output = run_example(stack, "symptom_conversation.py", "I have a headache\nI have chest pain\nSince Monday\n")
    assert output.count("not medical advice") == 3
    assert output.count("See a physician: ") == 2
    assert output.count("call your local emergency number now") == 1


def test_three_molecules_are_suggested_and_checked(stack: Stack) -> None:
    verdicts = re.findall(r"^(?:ok|rejected) +\S+  ", run_example(stack, "molecule_suggestions.py"), re.MULTILINE)
    assert len(verdicts) == 3


def test_the_notebook_runs_from_top_to_bottom(stack: Stack) -> None:
    output = run_example(stack, "notebook.py")
    assert len(re.findall(r"^(?:metal|polymer|ceramic|composite) +", output, re.MULTILINE)) == 2
    assert "tokens for the first answer]" in output


async def test_the_chat_in_the_browser_streams(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_BASE_URL", stack.url)
    monkeypatch.setenv("DEEPSEEK_API_KEY", stack.user_key)
    app = runpy.run_path(str(ROOT / "examples" / "chat_ui.py"))["app"]
    async with httpx.AsyncClient(transport=AsyncASGITransport(app), base_url="http://ui") as browser:
        assert "<form id=form>" in (await browser.get("/")).text
        question = [{"role": "user", "content": "Hello"}]
        async with browser.stream("POST", "/chat", json=question, timeout=60) as answer:
            pieces = [piece async for piece in answer.aiter_bytes()]
    assert len(pieces) > 3


def test_the_suite_runs_every_example() -> None:
    source = Path(__file__).read_text()
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f'"{path.name}"' not in source] == []
