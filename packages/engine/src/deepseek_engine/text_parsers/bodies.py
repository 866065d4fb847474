"""The four ways to write a call: each reads one call from the source into a builder, its closing tag included."""

import json
import re
from collections.abc import Callable
from typing import Any, Final, cast

from deepseek_engine.text_parsers.call import CallBuilder
from deepseek_engine.text_parsers.json_scan import JsonScanner, load_object, load_value
from deepseek_engine.text_parsers.markup import Body, CallStyle
from deepseek_engine.text_parsers.pythonic import read_pythonic
from deepseek_engine.text_parsers.source import MalformedError, Reading, Source, TagSet

MAX_NAME_CHARS: Final = 256

ReadBody = Callable[[Source, CallBuilder, CallStyle], Reading[None]]

_JSON_HEAD: Final = re.compile(
    r'\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?P<key>arguments|parameters)"\s*:\s*'
)
_DSML_PARAMETER: Final = '<｜DSML｜parameter name="'
_DSML_PARAMETER_END: Final = TagSet(("</｜DSML｜parameter>",))


def read_tagged(source: Source, call: CallBuilder, style: CallStyle) -> Reading[None]:
    """A name, a tag, a JSON object."""
    name = yield from source.until(style.name_end, MAX_NAME_CHARS)
    call.start(name.strip())
    yield from source.skip()
    yield from source.through(JsonScanner().scan, call.stream)
    call.check()
    yield from _read_close(source, style)


def read_json(source: Source, call: CallBuilder, style: CallStyle) -> Reading[None]:
    """One JSON object with the name and the arguments.

    In the usual order of keys the arguments are streamed; in another the object is read as a whole.
    """
    whole: list[str] = []
    outer = JsonScanner(pause_depth=2)
    yield from source.through(outer.scan, whole.append)
    head = None if outer.is_done else _JSON_HEAD.fullmatch("".join(whole))
    if head is not None:
        call.start(load_value(head["name"]))
        yield from source.through(JsonScanner().scan, call.stream)
        whole.append(call.arguments)
    if not outer.is_done:
        yield from source.through(outer.scan, whole.append)
    found = load_object("".join(whole))
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):  # encoded twice, as some templates show it to the model
        arguments = load_object(arguments)
    if not isinstance(found.get("name"), str) or not isinstance(arguments, dict):
        raise MalformedError
    if head is None:
        call.whole(found["name"], cast("dict[str, Any]", arguments))
    elif call.check() != arguments or load_value(head["name"]) != found["name"]:
        raise MalformedError  # a key came twice
    yield from _read_close(source, style)


def read_dsml(source: Source, call: CallBuilder, style: CallStyle) -> Reading[None]:
    """A name, then parameters that say whether their text is a string or JSON."""
    call.start((yield from source.until(style.name_end, MAX_NAME_CHARS)))
    call.stream("{")
    names: set[str] = set()
    while True:
        yield from source.skip()
        if (yield from source.expect(_DSML_PARAMETER, *style.call_close)) != _DSML_PARAMETER:
            break
        name = yield from source.until('" string="', MAX_NAME_CHARS)
        if name in names:
            raise MalformedError
        call.stream(f"{', ' if names else ''}{json.dumps(name, ensure_ascii=False)}: ")
        names.add(name)
        is_string = (yield from source.expect('true">', 'false">')) == 'true">'
        yield from _read_dsml_value(source, call, is_string=is_string)
    call.stream("}")
    call.check()


def _read_dsml_value(source: Source, call: CallBuilder, *, is_string: bool) -> Reading[None]:
    if is_string:
        call.stream('"')
        yield from source.stream_until(
            _DSML_PARAMETER_END, lambda text: call.stream(json.dumps(text, ensure_ascii=False)[1:-1])
        )
        call.stream('"')
    else:
        value: list[str] = []
        yield from source.stream_until(_DSML_PARAMETER_END, value.append)
        text = "".join(value).strip()
        load_value(text)
        call.stream(text)


def _read_close(source: Source, style: CallStyle) -> Reading[None]:
    for tag in style.call_close:
        yield from source.skip()
        yield from source.expect(tag)


BODIES: Final[dict[Body, ReadBody]] = {
    "tagged": read_tagged,
    "json": read_json,
    "dsml": read_dsml,
    "pythonic": read_pythonic,
}
