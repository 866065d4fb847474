"""The engine core as a process of its own: `python -m deepseek_engine.core_process --fd N`, N one end of a socket pair.

A thread reads messages into the engine's inbox; the main thread steps and sends; the watchdog's sends heartbeats. The
socket is the process's life line: when the other side closes it, or dies, the core exits.
"""

import argparse
import dataclasses
import faulthandler
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from deepseek_engine.config import EngineConfig
from deepseek_engine.engine import Engine
from deepseek_engine.errors import EngineDeadError, EngineError
from deepseek_engine.framing import FrameError, FrameReader, encode_frame
from deepseek_engine.grammar.store import GrammarStore, load_backend_of
from deepseek_engine.messages import Configure, Message, Ready, StartFailed, Work
from deepseek_engine.runner_protocol import Runner
from deepseek_engine.watchdog import Watchdog

logger = logging.getLogger(__name__)

RunnerBuilder = Callable[[EngineConfig], Runner[Any]]

# Named, not imported: importing it loads torch, and only the core process may pay for that.
DEFAULT_RUNNER: Final = "deepseek_engine.model_runner:build_runner"
_READ_BYTES: Final = 2**18


def main(argv: list[str] | None = None) -> int:
    """Run a core on the socket given; returns the process's exit status."""
    # Ctrl-C goes to the whole foreground group, and the API process decides what becomes of running requests.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until the watchdog answers it
    parser = argparse.ArgumentParser(prog="deepseek_engine.core_process", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of a connected stream socket")
    parser.add_argument("--runner", default=DEFAULT_RUNNER, help=argparse.SUPPRESS)
    parser.add_argument("--log-level", default="WARNING", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s core[%(process)d] %(name)s: %(message)s"
    )
    with socket.socket(fileno=args.fd) as sock:
        try:
            return _serve(sock, args.runner)
        except ConnectionError:
            return 0  # the other side has gone while we were sending
        except EngineDeadError:
            logger.critical("the engine cannot go on", exc_info=True)
            return 1


def _serve(sock: socket.socket, runner: str) -> int:
    config = _receive_config(sock)
    sender = _Sender(sock)
    inbox: deque[Work] = deque()
    wake = threading.Event()
    # It starts before the weights are loaded, so that a parent that dies meanwhile is noticed.
    threading.Thread(target=_read_forever, args=(sock, inbox, wake), name="inbox", daemon=True).start()
    try:
        engine, grammars, load_s = _start_engine(config, runner, inbox, wake)
    except Exception as error:  # whatever loading a model may raise is the reason that the caller is told
        is_ours = isinstance(error, EngineError)  # its text says all that there is to know
        reason = str(error) if is_ours else repr(error)
        logger.log(logging.DEBUG if is_ours else logging.ERROR, "the engine did not start", exc_info=True)
        sender.send(StartFailed(reason))
        return 1
    watchdog = Watchdog(
        engine,
        grammars,
        sender.send_or_drop,
        step_timeout_s=config.step_timeout_s,
        step_exit_s=config.step_exit_s,
        heartbeat_s=config.heartbeat_s,
    )
    watchdog.start()
    info = dataclasses.asdict(engine.info)
    sender.send(Ready(load_s=load_s, adapters=tuple(engine.adapters), **info))
    while True:
        if not engine.has_work:
            wake.wait()
        wake.clear()  # before the inbox is read: what comes after that sets it again
        outputs = engine.step()
        engine.journal.enter("send")
        sender.send(outputs)
        engine.journal.enter(None)


class _Sender:
    """The way out, for the main thread and the watchdog's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send, waiting for the reader where it has fallen behind."""
        frame = encode_frame(message)
        with self._lock:
            self._sock.sendall(frame)

    def send_or_drop(self, message: Message) -> None:
        """Send a small message unless that may block: a socket that is writable at all has room for one."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if select.select([], [self._sock], [], 0)[1]:
                self._sock.sendall(encode_frame(message))
        except OSError:
            logger.debug("the other side has gone", exc_info=True)  # the reading thread ends the process
        finally:
            self._lock.release()


def _receive_config(sock: socket.socket) -> EngineConfig:
    frames = FrameReader(msgspec.msgpack.Decoder(Configure))
    while True:
        data = sock.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the other side left before it sent a configuration")
        for message in frames.feed(data):
            return message.config


def _read_forever(sock: socket.socket, inbox: deque[Work], wake: threading.Event) -> None:
    """Fill the inbox; ends the process when the other side has gone, even in the middle of a step."""
    frames = FrameReader(msgspec.msgpack.Decoder[Work](Work))
    status = 0
    try:
        while data := sock.recv(_READ_BYTES):
            inbox.extend(frames.feed(data))
            wake.set()
    except FrameError:
        logger.critical("unreadable message", exc_info=True)
        status = 1
    except OSError:
        logger.debug("socket lost", exc_info=True)
    logging.shutdown()
    os._exit(status)


def _start_engine(
    config: EngineConfig, runner: str, inbox: deque[Work], wake: threading.Event
) -> tuple[Engine, GrammarStore, float]:
    """The engine, its grammars, and how many seconds it took."""
    started = time.monotonic()
    module, _, name = runner.partition(":")
    gc.disable()  # nearly all that importing torch makes stays: looking through it for garbage takes 0.1 s
    build_runner: RunnerBuilder = getattr(importlib.import_module(module), name)
    gc.enable()
    built = build_runner(config)
    grammars = GrammarStore(partial(load_backend_of, config.model, built.info.vocab_size), on_ready=wake.set)
    engine = Engine(config, built, inbox, wake=wake.set, grammars=grammars)
    # What was loaded stays for good: the collector need not walk through it again while requests wait.
    gc.collect()
    gc.freeze()
    return engine, grammars, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
