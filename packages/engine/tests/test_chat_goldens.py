"""Prompts against golden files, whose texts come from published encoders and from transformers (golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_engine.chat.conversation import ChatEncoder, Conversation
from deepseek_engine.chat.selection import choose_encoder
from deepseek_engine.chat.template_encoder import TemplateEncoder
from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.errors import InvalidRequestError

GOLDEN = Path(__file__).with_name("golden")
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(GOLDEN.glob("*.json"))}
CASES = [
    pytest.param(golden, case, id=f"{name}: {case['title']}, thinking {case['thinking']}")
    for name, golden in FILES.items()
    for case in golden["cases"]
]
BEGUN = {"role": "assistant", "content": "Well, \n", "prefix": True}


def _encoder(golden: dict[str, Any]) -> ChatEncoder:
    if "template" in golden:
        source = (GOLDEN / "templates" / golden["template"]).read_text(encoding="utf-8")
        # In this process, which is quicker; test_bounded_template.py says that it makes no difference.
        return TemplateEncoder(ChatTemplate(source, bos_token=golden["bos_token"], eos_token=golden["eos_token"]))
    encoder = choose_encoder(None, model_type=None, chat_format=golden["format"])
    assert encoder is not None
    return encoder


def _conversation(case: dict[str, Any]) -> Conversation:
    return Conversation(**{key: case[key] for key in ("messages", "tools", "thinking", "reasoning_effort")})


@pytest.mark.parametrize(("golden", "case"), CASES)
def test_a_prompt_is_the_golden_text(golden: dict[str, Any], case: dict[str, Any]):
    if "refusal" in case:
        with pytest.raises(InvalidRequestError, match=case["refusal"]):
            _encoder(golden).encode(_conversation(case))
    else:
        assert _encoder(golden).encode(_conversation(case)).text == case["text"]


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_told_from_its_template_and_takes_tools(name: str):
    encoder = _encoder(FILES[name])
    assert encoder.format.name == FILES[name]["format"] == name
    assert encoder.takes_tools


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("thinking", [False, None])
def test_a_begun_answer_stands_behind_the_prompt_as_it_is(name: str, thinking: bool | None):
    encoder, question = _encoder(FILES[name]), {"role": "user", "content": "Hi"}
    asked = encoder.encode(Conversation([question], thinking=thinking))
    begun = encoder.encode(Conversation([question, BEGUN], thinking=thinking, continue_final=True))
    markup = encoder.format.reasoning
    if asked.reasoning == "open":  # R1 thinks whatever it is told; its answer begins behind empty reasoning
        assert markup is not None
        assert begun.text == f"{asked.text}\n{markup.close}\n\n{BEGUN['content']}"
    else:
        assert begun.text == asked.text + BEGUN["content"]
    assert begun.reasoning == "closed"
