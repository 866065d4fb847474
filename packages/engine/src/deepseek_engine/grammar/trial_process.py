"""The trial: compile a grammar and follow it for a while in a process that can be killed.

`python -m deepseek_engine.grammar.trial_process …` loads the library and the vocabulary once, then forks for each
grammar. A fork has a limit on processor time and memory; whatever a grammar does to it, crash included, is an answer.
It has one thread and has computed nothing with torch, so that forking it is safe.
"""

import argparse
import logging
import os
import random
import resource
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from deepseek_engine.errors import GrammarError
from deepseek_engine.framing import FrameReader, encode_frame
from deepseek_engine.grammar.protocol import Grammar, GrammarBackend
from deepseek_engine.grammar.source import GrammarSource
from deepseek_engine.grammar.store import load_backend_of
from deepseek_engine.messages import Message

logger = logging.getLogger(__name__)

MAX_MEMORY_BYTES: Final = 2**30
"""That a trial may take beyond what the process has."""
_NICENESS: Final = 15
_NUM_TOKENS: Final = 64
_MAX_S_PER_TOKEN: Final = 0.02
_READ_BYTES: Final = 2**18


class Trial(Message, frozen=True):
    """A grammar to try."""

    number: int
    source: GrammarSource


class Verdict(Message, frozen=True):
    """What came of it; no reason is a pass. The first verdict, of number 0, says that the process is ready."""

    number: int
    reason: str | None = None


@dataclass(slots=True)
class _Running:
    number: int
    pid: int
    deadline_s: float
    output: bytes = b""


class _Trials:
    """Forks, reads their answers, and kills those that take too long."""

    def __init__(self, sock: socket.socket, backend: GrammarBackend, eos: tuple[int, ...], limit_s: float) -> None:
        self._sock = sock
        self._backend = backend
        self._eos = eos
        self._limit_s = limit_s
        self._frames = FrameReader(msgspec.msgpack.Decoder(Trial))
        self._running: dict[int, _Running] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the other side closes the socket; the trials that run then die with it."""
        while True:
            now = time.monotonic()
            waits = [trial.deadline_s - now for trial in self._running.values()]
            for key, _ in self._selector.select(max(min(waits), 0.0) if waits else None):
                if key.fileobj is not self._sock:
                    self._read(key.fd)
                    continue
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    for trial in self._running.values():
                        os.kill(trial.pid, signal.SIGKILL)
                    return
                for trial in self._frames.feed(data):
                    self._start(trial)
            for fd, trial in list(self._running.items()):
                if time.monotonic() >= trial.deadline_s:
                    self._end(fd, f"it takes more than {self._limit_s:g} s to compile: make it smaller")

    def _start(self, trial: Trial) -> None:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            self._sock.close()
            _limit_self(self._limit_s)
            os.write(write_end, (_try(self._backend, trial.source, self._eos) or "").encode()[:4000] + b"\n")
            os._exit(0)
        os.close(write_end)
        # Twice: a busy machine gives a niced process little, and its processor time is limited as well.
        self._running[read_end] = _Running(trial.number, pid, time.monotonic() + 2 * self._limit_s)
        self._selector.register(read_end, selectors.EVENT_READ)

    def _read(self, fd: int) -> None:
        trial = self._running[fd]
        data = os.read(fd, _READ_BYTES)
        trial.output += data
        if not data:
            self._end(fd, None)

    def _end(self, fd: int, reason: str | None) -> None:
        trial = self._running.pop(fd)
        self._selector.unregister(fd)
        os.close(fd)
        if reason is not None:
            os.kill(trial.pid, signal.SIGKILL)
        _, status = os.waitpid(trial.pid, 0)
        if reason is None and trial.output.endswith(b"\n"):
            reason = trial.output[:-1].decode(errors="replace") or None
        elif reason is None:
            reason = _reason_of(status, self._limit_s)
        self._sock.sendall(encode_frame(Verdict(trial.number, reason)))


def _try(backend: GrammarBackend, source: GrammarSource, eos_token_ids: tuple[int, ...]) -> str | None:
    """Why the grammar cannot be used; None if it can."""
    try:
        grammar = backend.compile(source)
    except GrammarError as error:
        return str(error)
    except MemoryError:
        return "it takes too much memory to compile: make it smaller"
    return _follow(grammar, eos_token_ids)


def _follow(grammar: Grammar, eos_token_ids: tuple[int, ...]) -> str | None:
    """Write some tokens at random, as a model might, and see that the next one is always found, and soon."""
    choose = random.Random(0)  # noqa: S311 - any tokens do
    matcher = grammar.matcher(eos_token_ids)
    started = time.process_time()
    for count in range(1, _NUM_TOKENS + 1):
        mask = matcher.next_mask(frozenset())
        if mask is None:
            return "it comes to where no token of the vocabulary fits" if count > 1 else "it allows no answer at all"
        if (time.process_time() - started) > _MAX_S_PER_TOKEN * _NUM_TOKENS:
            return "it takes too long a token to follow: write it with fewer choices and repetitions"
        token_id = _random_token(mask, choose)
        if token_id in eos_token_ids or not matcher.accept(token_id):
            return None
    return None


def _random_token(mask: "memoryview[int]", choose: random.Random) -> int:
    """A token of a mask, found from a random place on."""
    words = [int(word) & 0xFFFFFFFF for word in mask]
    start = choose.randrange(len(words))
    index = next(i % len(words) for i in range(start, start + len(words)) if words[i % len(words)])
    bits = [bit for bit in range(32) if words[index] >> bit & 1]
    return index * 32 + choose.choice(bits)


def _reason_of(status: int, limit_s: float) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return f"it takes more than {limit_s:g} s or too much memory to compile: make it smaller"
    return "it cannot be compiled: the compiler crashed on it"


def _limit_self(limit_s: float) -> None:
    os.nice(_NICENESS)
    seconds = max(1, round(limit_s))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(argv: list[str] | None = None) -> int:
    """Try grammars on the socket given; the process's exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="deepseek_engine.grammar.trial_process")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--num-logits", type=int, required=True)
    parser.add_argument("--eos", type=int, nargs="+", required=True)
    parser.add_argument("--limit-s", type=float, required=True)
    args = parser.parse_args(argv)
    with socket.socket(fileno=args.fd) as sock:
        try:
            backend = load_backend_of(args.model, args.num_logits)
        except Exception as error:  # whatever a library may raise is the reason that the caller is told
            sock.sendall(encode_frame(Verdict(0, repr(error))))
            return 1
        try:
            sock.sendall(encode_frame(Verdict(0)))
            _Trials(sock, backend, tuple(args.eos), args.limit_s).serve()
        except ConnectionError:
            return 0  # the other side has gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
