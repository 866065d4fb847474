"""Prompts against golden files, whose texts come from the models' own encoders and templates (golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_engine.chat.conversation import Conversation
from deepseek_engine.chat.selection import choose_encoder

GOLDEN = Path(__file__).with_name("golden")
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDEN.glob("*.json"))}
CASES = [
    pytest.param(golden, case, id=f"{name}: {case['title']}, thinking {case['thinking']}")
    for name, golden in FILES.items()
    for case in golden["cases"]
]


def _encode(golden: dict[str, Any], case: dict[str, Any], **changes: Any) -> Any:
    encoder = choose_encoder(
        golden.get("template"),
        model_type=None,
        chat_format=golden["format"] if "template" not in golden else "auto",
        bos_token=golden.get("bos_token", ""),
        eos_token=golden.get("eos_token", ""),
    )
    assert encoder is not None
    fields = {key: case[key] for key in ("messages", "tools", "thinking", "reasoning_effort")}
    return encoder.encode(Conversation(**(fields | changes))), encoder


@pytest.mark.parametrize(("golden", "case"), CASES)
def test_a_prompt_is_the_golden_text(golden: dict[str, Any], case: dict[str, Any]):
    prompt, _ = _encode(golden, case)
    assert prompt.text == case["text"]
