"""The conversation of `deepseek chat`: lines in, answers streamed out, history kept."""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from deepseek_client.client import DeepSeek
from deepseek_client.errors import APIConnectionError, AuthenticationError, DeepSeekError
from deepseek_client.terminal.lines import Lines, Totals, keep_usage
from deepseek_client.terminal.markdown import AnswerWriter
from deepseek_client.types.chat import ChatCompletion, ChatMessage

HELP = {
    "/help": "what can be typed",
    "/exit": "leave (so does Ctrl-D)",
    "/reset": "forget the conversation",
    "/retry": "ask the last question again",
    "/system": "TEXT sets the instructions; without a text they are removed",
    "/model": "ID takes another model; without one, says which",
    "/save": "FILE keeps the conversation: as JSON if it ends in .json, else as Markdown",
    "/usage": "tokens of this session",
}
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_BRIEF = "/help lists what can be typed, Ctrl-C stops an answer, a paste or lines ending in \\ are one message"


@dataclass(slots=True)
class ChatLoop:
    """A conversation in a terminal or a pipe.

    Attributes:
        client: what answers.
        params: sent with each turn: max_tokens, temperature, thinking.
        system: instructions before the conversation.
        lines: where the user's lines come from.
        out: where answers go.
        notes: where messages about the conversation go, so that `out` can be piped on.
        styled: whether answers are shown as Markdown, and reasoning at all.
        as_json: whether each answer is written as a line of JSON, when it is whole.
    """

    client: DeepSeek
    params: dict[str, Any]
    system: str | None
    lines: Lines
    out: TextIO
    notes: TextIO
    styled: bool = False
    as_json: bool = False
    model: str | None = None
    history: list[ChatMessage] = field(default_factory=list[ChatMessage])
    totals: Totals = field(default_factory=Totals)
    _asked: str | None = None
    _before: list[ChatMessage] = field(default_factory=list[ChatMessage])

    def run(self, *, greets: bool) -> int:
        """Answer lines until /exit or the end of input.

        Returns:
            the exit code: 1 if the last answer failed, else 0.

        Raises:
            AuthenticationError: no later turn could succeed either.
        """
        if greets:
            self._note(_BRIEF)
        succeeded = True
        while (line := self._read_line()) is not None:
            words = line.strip()
            command = _COMMAND.fullmatch(words)
            if words in ("/exit", "/quit"):
                break
            if words == "/retry" and self._asked is not None:
                self.history = list(self._before)
                succeeded = self._turn(self._asked)
            elif command is not None:
                self._command(f"/{command[1]}", (command[2] or "").strip())
            elif words:
                succeeded = self._turn(words)
        if greets and self.totals.answers:
            self._note(f"({self.totals})")
        return 0 if succeeded else 1

    def _read_line(self) -> str | None:
        """The next line; None at the end. Ctrl-C drops what was typed so far."""
        while True:
            try:
                return self.lines.read()
            except KeyboardInterrupt:
                self._note("\n(/exit leaves)")

    def _command(self, name: str, argument: str) -> None:
        commands: dict[str, Callable[[str], str]] = {
            "/help": lambda _: "\n".join(f"{name:8} {text}" for name, text in HELP.items()),
            "/reset": self._reset,
            "/retry": lambda _: "(nothing was asked yet)",
            "/system": self._set_system,
            "/model": self._set_model,
            "/save": self._save,
            "/usage": lambda _: f"({self.totals})",
        }
        known = commands.get(name)
        self._note(known(argument) if known is not None else f"(there is no {name}: {' '.join(HELP)})")

    def _reset(self, _: str) -> str:
        self.history.clear()
        self._asked = None
        return "(the conversation is forgotten)"

    def _set_system(self, text: str) -> str:
        self.system = text or None
        return "(instructions set)" if self.system else "(instructions removed)"

    def _set_model(self, name: str) -> str:
        self.model = name or self.model
        return f"(the model is {self.model or 'the server’s default'})"

    def _save(self, name: str) -> str:
        if not name:
            return "(/save needs the name of a file)"
        messages = [message.model_dump(mode="json", exclude_none=True) for message in self._conversation()]
        if name.endswith(".json"):
            text = json.dumps(messages, ensure_ascii=False, indent=2)
        else:
            text = "\n\n".join(f"## {message['role']}\n\n{message.get('content', '')}" for message in messages)
        try:
            Path(name).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            return f"(not saved: {error})"
        return f"({len(messages)} messages saved to {name})"

    def _conversation(self) -> list[ChatMessage]:
        before = [ChatMessage(role="system", content=self.system)] if self.system else []
        return [*before, *self.history]

    def _turn(self, words: str) -> bool:
        """Ask, show the answer, remember both as far as it went; False if it failed."""
        self._asked, self._before = words, list(self.history)
        question = ChatMessage(role="user", content=words)
        messages = [*self._conversation(), question]
        writer = AnswerWriter(self.out, styled=self.styled)
        answer: list[str] = []
        finish: str | None = None
        try:
            finish = self._whole(messages, answer) if self.as_json else self._stream(messages, answer, writer)
        except KeyboardInterrupt:
            writer.end()
            self._note("(stopped)")
        except AuthenticationError:
            raise
        except DeepSeekError as error:
            if answer:
                writer.end()
            self._note(f"deepseek: {error}")
            if isinstance(error, APIConnectionError) or not answer:
                return False
        else:
            if not self.as_json:
                writer.end()
            if finish == "length" and self.styled:  # it looks finished otherwise
                self._note("[stopped at the token limit]")
        if answer:
            self.history += [question, ChatMessage(role="assistant", content="".join(answer))]
        return True

    def _stream(self, messages: list[ChatMessage], answer: list[str], writer: AnswerWriter) -> str | None:
        params: dict[str, Any] = {"stream_options": {"include_usage": True}, **self.params}
        with contextlib.closing(
            self.client.chat.completions.create(messages=messages, stream=True, model=self.model, **params)
        ) as stream:
            for chunk in stream:
                delta = chunk.choices[0].delta if chunk.choices else None
                if delta is not None and delta.reasoning_content:
                    writer.reasoning(delta.reasoning_content)
                if delta is not None and delta.content:
                    answer.append(delta.content)
                    writer.content(delta.content)
            self._count(stream.snapshot)
            return stream.finish_reason

    def _whole(self, messages: list[ChatMessage], answer: list[str]) -> str | None:
        completion = self.client.chat.completions.create(
            messages=messages, stream=False, model=self.model, **self.params
        )
        content = completion.choices[0].message.content
        answer.append(content if isinstance(content, str) else "")
        self.out.write(completion.model_dump_json(exclude_unset=True) + "\n")
        self.out.flush()
        self._count(completion)
        return completion.choices[0].finish_reason

    def _count(self, completion: ChatCompletion) -> None:
        self.totals.add(completion.usage)
        keep_usage(completion.model, completion.usage)

    def _note(self, text: str) -> None:
        print(text, file=self.notes, flush=True)
