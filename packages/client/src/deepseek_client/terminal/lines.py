"""The lines that a user types, pastes or pipes, and Ctrl-C while something is read."""

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Generator, Sequence
from types import FrameType
from typing import Any, Protocol, TextIO, cast

from deepseek_client.terminal.state import keep_line, read_history


class Lines(Protocol):
    """Where the user's lines come from."""

    def read(self) -> str | None:
        """The next line; None at the end. A paste is one line, with line ends in it.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        ...


class PipedLines:
    """Lines of a file or a pipe."""

    def __init__(self, source: TextIO) -> None:
        self._source = source

    def read(self) -> str | None:
        """The next line."""
        return self._source.readline() or None


class TypedLines:
    """Lines typed at a terminal, by readline where it is: arrow keys, the lines of earlier days, Tab for commands.

    A paste of many lines arrives whole (bracketed paste), and a line that ends in a backslash goes on with the next.
    """

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = commands
        try:
            self._readline: Any = importlib.import_module("readline")
        except ImportError:  # Windows, whose terminal edits lines itself
            self._readline = None
        if self._readline is not None:
            self._readline.parse_and_bind("set enable-bracketed-paste on")
            self._readline.parse_and_bind("tab: complete")
            self._readline.set_completer_delims(" \n")
            self._readline.set_completer(self._complete)
            self._readline.set_auto_history(False)
            for line in read_history():
                self._readline.add_history(line)

    def read(self) -> str | None:
        """The next line."""
        try:
            text = input("> ")
            while text.endswith("\\"):
                text = text[:-1] + "\n" + input("… ")
        except EOFError:
            return None
        if text.strip():
            keep_line(text)
            if self._readline is not None:
                self._readline.add_history(text)
        return text

    def _complete(self, text: str, state: int) -> str | None:
        if cast("int", self._readline.get_begidx()) != 0:
            return None
        found = [f"{name} " for name in self._commands if name.startswith(text)] if text.startswith("/") else []
        return found[state] if state < len(found) else None


_REPEATS, _PAUSE_SECONDS = 20, 0.05


@contextlib.contextmanager
def acting_on_interrupts() -> Generator[None]:
    """While the block runs, Ctrl-C raises KeyboardInterrupt soon, whatever the main thread does.

    CPython only notes a signal when it comes and raises between two bytecodes; a read that the main thread enters in
    between blocks on, for minutes if the server thinks. So a thread, which the signal's wakeup descriptor wakes, makes
    blocking calls look again with an empty signal, for a second. Where signals cannot be sent to a thread (Windows)
    and outside the main thread the block just runs.
    Source: signal.set_wakeup_fd; PEP 475, by which an interrupted call goes on unless a signal's handler raises.
    """
    if not hasattr(signal, "pthread_kill") or threading.current_thread() is not threading.main_thread():
        yield
        return
    main = threading.get_ident()
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)

    def repeat() -> None:
        while signals := os.read(woken, 1):
            if signals[0] == signal.SIGINT:
                for _ in range(_REPEATS):
                    time.sleep(_PAUSE_SECONDS)
                    signal.pthread_kill(main, signal.SIGURG)
        os.close(woken)

    def ignore(_number: int, _frame: FrameType | None) -> None:
        pass

    threading.Thread(target=repeat, name="deepseek-interrupts", daemon=True).start()
    urgent = signal.signal(signal.SIGURG, ignore)
    wakeup = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGURG, urgent)
        os.close(wakes)
