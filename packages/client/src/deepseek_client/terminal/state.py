"""What the program keeps between runs: typed lines and token counts, never prompts of scripts, answers or keys.

The folder is `$XDG_STATE_HOME/deepseek` (~/.local/state/deepseek), or $DEEPSEEK_STATE_DIR; an empty one keeps nothing.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

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
