"""The lines that a user types, pastes or pipes, Ctrl-C while one is read, and what is kept between runs.

Kept are typed lines and token counts, never prompts of scripts, answers or keys. The folder is
`$XDG_STATE_HOME/deepseek` (~/.local/state/deepseek), or $DEEPSEEK_STATE_DIR; an empty one keeps nothing.
"""

import contextlib
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TextIO, cast

from deepseek_client.types.base import Usage

MAX_LINES = 1000


def state_dir() -> Path | None:
    """The folder; None to keep nothing."""
    named = os.environ.get("DEEPSEEK_STATE_DIR")
    if named is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "deepseek"


def read_history() -> list[str]:
    """The lines typed before, oldest first."""
    return [text for text in _read("history.jsonl") if isinstance(text, str)][-MAX_LINES:]


def keep_line(text: str) -> None:
    """Add a typed line, which may have several lines in it."""
    _append("history.jsonl", text)


@dataclass(slots=True)
class Totals:
    """Tokens of some answers."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, usage: Usage | None) -> None:
        """Count one answer."""
        self.answers += 1
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.prompt_cache_hit_tokens or 0
            self.completion_tokens += usage.completion_tokens

    def __str__(self) -> str:
        cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
        tokens = f"{self.prompt_tokens} prompt tokens{cached}, {self.completion_tokens} completion tokens"
        return f"{self.answers} answers: {tokens}"


def keep_usage(model: str, usage: Usage | None) -> None:
    """Note what one answer took."""
    totals = Totals()
    totals.add(usage)
    _append("usage.jsonl", {"time": int(time.time()), "model": model, **asdict(totals)})


def read_usage(since: float) -> dict[tuple[str, str], Totals]:
    """Totals by day (of this machine's time zone) and model, oldest first."""
    found: dict[tuple[str, str], Totals] = {}
    for kept in _read("usage.jsonl"):
        if not isinstance(kept, dict):
            continue
        row = cast("dict[str, Any]", kept)
        if row.get("time", 0) < since:
            continue
        day = time.strftime("%Y-%m-%d", time.localtime(row["time"]))
        totals = found.setdefault((day, str(row.get("model"))), Totals())
        for name in asdict(totals):
            setattr(totals, name, getattr(totals, name) + int(row.get(name) or 0))
    return found


def _read(name: str) -> Iterator[object]:
    folder = state_dir()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        for line in (folder / name).read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut
                yield json.loads(line)


def _append(name: str, value: object) -> None:
    """Add a line; a folder that cannot be written keeps nothing."""
    folder = state_dir()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(file, "a", encoding="utf-8") as out:  # noqa: PTH123  it is a descriptor
            out.write(json.dumps(value, ensure_ascii=False) + "\n")


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
