"""Writes the caller's name for a model over the engine's: the first stage, where a route has aliases."""

import re

import orjson

# A quote within a JSON string is escaped, so this is a key; the answer's own comes before any that lies deeper.
_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')


class ModelNameStage:
    """A stage; see `relay/stages.py`."""

    def __init__(self, name: str) -> None:
        self._replacement = b'"model":' + orjson.dumps(name)

    def pass_on(self, frame: bytes) -> bytes:
        """An event with the caller's name."""
        return _MODEL.sub(lambda _: self._replacement, frame, count=1)

    def body(self, body: bytes) -> bytes:
        """A whole answer with the caller's name."""
        return self.pass_on(body)


def renamed(body: bytes, served: str, asked: str) -> bytes:
    """An error body with the caller's name for a model in the place of the engine's, where that is a whole word."""
    if served == asked:
        return body
    name, own = (orjson.dumps(text)[1:-1] for text in (served, asked))
    return re.sub(rb"(?<![\w./-])" + re.escape(name) + rb"(?![\w/-]|\.\w)", lambda _: own, body)
