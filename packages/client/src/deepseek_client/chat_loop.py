"""The conversation of `deepseek chat`: lines in, answers streamed out, history kept."""

import contextlib
import importlib
from dataclasses import dataclass, field
from typing import TextIO

from deepseek_client.client import DeepSeek
from deepseek_client.errors import APIConnectionError, AuthenticationError, DeepSeekError
from deepseek_client.types.chat import ChatMessage

_HELP = "/exit leaves, /reset forgets the conversation, /system TEXT sets instructions, Ctrl-C stops an answer"


@dataclass(slots=True)
class ChatLoop:
    """A conversation in a terminal or a pipe.

    Attributes:
        client: what answers.
        max_tokens, temperature: sent with each turn if set.
        system: instructions before the conversation.
        source: where the user's lines come from.
        out: where answers go.
        notes: where prompts and messages about the conversation go, so that `out` can be piped on.
    """

    client: DeepSeek
    max_tokens: int | None
    temperature: float | None
    system: str | None
    source: TextIO
    out: TextIO
    notes: TextIO
    history: list[ChatMessage] = field(default_factory=list[ChatMessage])

    def run(self) -> int:
        """Answer lines until /exit or the end of input.

        Returns:
            the exit code: 1 if the last answer failed, else 0.

        Raises:
            AuthenticationError: no later turn could succeed either.
        """
        if self.source.isatty():
            with contextlib.suppress(ImportError):  # not on Windows, whose terminal edits lines itself
                importlib.import_module("readline")  # gives input() the arrow keys and the lines before
            self._note(_HELP)
        failed = False
        while (line := self._read_line()) is not None:
            words = line.strip()
            if words in ("/exit", "/quit"):
                break
            if words.startswith("/"):
                self._command(words)
            elif words:
                failed = not self._turn(words)
        return 1 if failed else 0

    def _read_line(self) -> str | None:
        """The next line; None at the end. Ctrl-C drops what was typed so far."""
        while True:
            try:
                if self.source.isatty():
                    return input("> ")
                return self.source.readline() or None
            except EOFError:
                self._note("")
                return None
            except KeyboardInterrupt:
                self._note("\n(/exit leaves)")

    def _command(self, words: str) -> None:
        name, _, argument = words.partition(" ")
        if name == "/reset":
            self.history.clear()
            self._note("(the conversation is forgotten)")
        elif name == "/system":
            self.system = argument.strip() or None
            self._note("(instructions set)" if self.system else "(instructions removed)")
        else:
            self._note(f"(there is no {name}: {_HELP})")

    def _turn(self, words: str) -> bool:
        """Ask, stream the answer, remember both as far as it went; False if it failed."""
        question = ChatMessage(role="user", content=words)
        before = [ChatMessage(role="system", content=self.system)] if self.system else []
        answer: list[str] = []
        try:
            self._stream([*before, *self.history, question], answer)
        except KeyboardInterrupt:
            self._note("\n(stopped)")
        except AuthenticationError:
            raise
        except DeepSeekError as error:
            self._note(f"\ndeepseek: {error}" if answer else f"deepseek: {error}")
            if isinstance(error, APIConnectionError) or not answer:
                return False
        self.out.write("\n")
        self.out.flush()
        if answer:
            self.history += [question, ChatMessage(role="assistant", content="".join(answer))]
        return True

    def _stream(self, messages: list[ChatMessage], answer: list[str]) -> None:
        with contextlib.closing(
            self.client.chat.completions.create(
                messages=messages, stream=True, max_tokens=self.max_tokens, temperature=self.temperature
            )
        ) as stream:
            for chunk in stream:
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    answer.append(text)
                    self.out.write(text)
                    self.out.flush()

    def _note(self, text: str) -> None:
        print(text, file=self.notes, flush=True)
