"""Write the golden files of the templates: `python write_goldens.py`. transformers renders the texts.

The conversations are those of deepseek-v3.2.json, so that all families answer for the same ones.
"""

import copy
import json
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
TOKENS = {
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "llama3-json": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"),
}
# Which of the two ways to be told of thinking a family's template has; the others are not told.
THINKING = {"deepseek-v3.1": "thinking", "qwen3": "enable_thinking"}


def _with_argument_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as transformers' users write them: arguments are objects."""
    messages = copy.deepcopy(messages)
    for call in (call for message in messages for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def _render(name: str, template: str, case: dict[str, Any], bos: str, eos: str) -> dict[str, str]:
    messages = case["messages"]
    if not name.startswith("deepseek"):  # whose templates join the arguments as text
        messages = _with_argument_objects(messages)
    flags = {THINKING[name]: case["thinking"]} if name in THINKING else {}
    try:
        texts, _ = render_jinja_template(
            [messages], tools=case["tools"] or None, chat_template=template, add_generation_prompt=True,
            bos_token=bos, eos_token=eos, **flags,
        )  # fmt: skip
    except jinja2.TemplateError as error:
        return {"refusal": str(error)}
    return {"text": texts[0]}


def main() -> None:
    """Write one file a template."""
    conversations = json.loads((HERE / "deepseek-v3.2.json").read_text(encoding="utf-8"))["cases"]
    for path in sorted((HERE / "templates").glob("*.jinja")):
        name, template = path.stem, path.read_text(encoding="utf-8")
        bos, eos = TOKENS.get(name) or TOKENS.get(name.split("-")[0], ("", "<|im_end|>"))
        cases: list[dict[str, Any]] = []
        for conversation in conversations:
            case = {key: value for key, value in conversation.items() if key != "text"}
            if name in THINKING or not case["thinking"]:
                cases.append(case | _render(name, template, case, bos, eos))
        golden = {"format": name, "template": path.name, "bos_token": bos, "eos_token": eos, "cases": cases}
        text = json.dumps(golden, ensure_ascii=False, indent=1) + "\n"
        (HERE / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
