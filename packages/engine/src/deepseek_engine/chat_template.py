"""A checkpoint's chat template: messages in, prompt text out.

Templates are programs that arrive with a checkpoint, so they run in jinja2's immutable sandbox, with the settings and
helpers that transformers gives them (`chat_template_utils.py`). A request never brings a template of its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deepseek_engine.errors import InvalidRequestError, ModelLoadError

MAX_TEMPLATE_CHARS: Final = 256 * 1024
MAX_PROMPT_CHARS: Final = 16 * 1024 * 1024


class ChatTemplate:
    """A compiled template.

    Attributes:
        source: the template's text.
        variables: names that the template reads, its own among them.
        may_block: rendering does not wait for another process.

    Raises:
        ModelLoadError: the source is too long or does not compile.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.variables: frozenset[str] = parse_template(source)
        environment = _environment()
        helpers = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source, globals=helpers)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelLoadError(f"the checkpoint's chat template does not compile: {error}") from error
        self.source = source
        self.may_block: bool = False
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The prompt that asks for the next assistant turn.

        Args:
            messages: the turns, in OpenAI's form.
            variables: what else the template may read.

        Raises:
            InvalidRequestError: the template refuses the messages, fails on them, or gives too much text.
        """
        context = {**(variables or {}), **self._tokens, "add_generation_prompt": True}
        try:
            return _bounded(self._template.generate(messages=list(map(_with_readable_calls, messages)), **context))
        except InvalidRequestError:
            raise
        except Exception as error:  # a template is a program and may fail in any way
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def parse_template(source: str) -> frozenset[str]:
    """Names that a template reads; nothing of it is run, so not `jinja2.meta`, which computes its constants.

    Raises:
        ModelLoadError: the source is too long or is no template.
    """
    if len(source) > MAX_TEMPLATE_CHARS:
        raise ModelLoadError(f"the chat template has {len(source)} characters: at most {MAX_TEMPLATE_CHARS} may be")
    try:
        names = _environment().parse(source).find_all(jinja2.nodes.Name)
        return frozenset(name.name for name in names if name.ctx == "load")
    except (jinja2.TemplateError, RecursionError) as error:
        raise ModelLoadError(f"the chat template does not compile: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    return environment


class _Arguments(dict[str, Any]):
    """A call's arguments as templates want them: some treat them as an object, some as its text."""

    def __init__(self, text: str) -> None:
        super().__init__(json.loads(text))
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: object) -> str:
        return f"{self._text}{other}"

    def __radd__(self, other: object) -> str:
        return f"{other}{self._text}"


def _with_readable_calls(message: dict[str, Any]) -> dict[str, Any]:
    calls = cast("list[dict[str, Any]]", message.get("tool_calls") or [])
    if not calls:
        return message
    readable = [
        {**call, "function": {**call["function"], "arguments": _Arguments(call["function"]["arguments"])}}
        for call in calls
    ]
    return {**message, "tool_calls": readable}


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012  jinja2's declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The block's content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
