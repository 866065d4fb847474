"""A conversation about symptoms, turn by turn, with a safety notice that no model can leave out.

Signs of an emergency are looked for by the program, before the model is asked. Type answers; an empty line ends it.
Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from deepseek_client import DeepSeek

NOTICE = "[This is general information, not medical advice. See a physician; in an emergency call your local number.]"
EMERGENCY = ("chest pain", "cannot breathe", "can't breathe", "unconscious", "stroke", "suicide", "胸痛", "呼吸困难")
SYSTEM = """\
You help a person to prepare for a visit to a physician. Ask one question at a time about onset, course and severity."""


class Turn(BaseModel):
    """What the model may say: an answer, how soon to see someone, and its next question."""

    reply: Annotated[str, Field(min_length=1, max_length=240)]
    see_a_physician: Literal["when convenient", "this week", "today", "now"]
    question: Annotated[str, Field(max_length=120)] | None


def main() -> None:
    """Read a line, answer it, remember both."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    print(NOTICE)
    with DeepSeek() as client:
        while said := read_line():
            if any(sign in said.lower() for sign in EMERGENCY):
                print("This may be an emergency: call your local emergency number now.")
                continue
            messages.append({"role": "user", "content": said})
            answer = client.chat.completions.parse(messages=messages, response_model=Turn, max_tokens=3000)
            messages.append({"role": "assistant", "content": answer.parsed.model_dump_json()})
            print(f"{answer.parsed.reply}\nSee a physician: {answer.parsed.see_a_physician}.")
            print(f"{answer.parsed.question or ''}\n{NOTICE}")


def read_line() -> str:
    """A line from the user; empty at the end of the input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


if __name__ == "__main__":
    main()
