"""A checkpoint's chat template: messages in, prompt text out.

Templates are programs that arrive with a checkpoint, so they run in jinja2's immutable sandbox, with the settings and
helpers that transformers gives them (`chat_template_utils.py`). A request never brings a template of its own.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deepseek_engine.errors import InvalidRequestError, ModelLoadError

MAX_PROMPT_CHARS: Final = 16 * 1024 * 1024


class ChatTemplate:
    """A compiled template.

    Raises:
        ModelLoadError: the template's source does not compile.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        helpers = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source, globals=helpers)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"the checkpoint's chat template does not compile: {error}") from error
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(self, messages: Sequence[dict[str, str]], *, continue_final: bool = False) -> str:
        """The prompt that asks for the next assistant turn.

        With `continue_final` the last message is the beginning of that turn and the prompt ends inside it: rendered
        as the turn's opening followed by the text, which is where the model would stand had it written that text.

        Args:
            messages: `role` and `content` of each turn.
            continue_final: the answer continues the last message.

        Raises:
            InvalidRequestError: the template refuses the messages, fails on them, or gives too much text.
        """
        turns = list(messages[:-1] if continue_final else messages)
        try:
            prompt = _bounded(self._template.generate(messages=turns, add_generation_prompt=True, **self._tokens))
        except InvalidRequestError:
            raise
        except Exception as error:  # a template is a program and may fail in any way
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return prompt + messages[-1]["content"] if continue_final else prompt


def _bounded(parts: Iterator[str]) -> str:
    """The parts joined, as long as they are not too long."""
    taken: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        if size > MAX_PROMPT_CHARS:
            raise InvalidRequestError(
                f"the chat template gives more than {MAX_PROMPT_CHARS} characters: send less text", param="messages"
            )
        taken.append(part)
    return "".join(taken)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002  the name that templates may use
    return datetime.now().astimezone().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
