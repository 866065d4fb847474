"""A chat template whose rendering ends: in time, within memory, without a word to the server's loop.

A template is a program that came with a checkpoint. jinja2's sandbox keeps it from the machine, but not from counting
to 10**18, and no thread can be stopped that does so in C. So it runs in a process of its own that can: about 0.3 ms a
conversation. Templates that we have read run in this process.
"""

import hashlib
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from deepseek_engine.chat.template_worker import Job, Outcome, Setup, read_body, write_message
from deepseek_engine.chat_template import ChatTemplate, parse_template
from deepseek_engine.errors import InvalidRequestError, QueueFullError

CPU_S: Final = 2.0
"""Processor time for one conversation. The longest ones that fit a request take a tenth of it."""
WALL_S: Final = 15.0
"""The same in time of day, for a machine that is busy with other things."""

_READ_BY_US: Final = frozenset(
    {
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    }
)
"""SHA-256 of templates that are known to end: that of the built-in model."""


class Template(Protocol):
    """A chat template that can be rendered."""

    @property
    def source(self) -> str:
        """Its text."""
        ...

    @property
    def variables(self) -> frozenset[str]:
        """Names that it reads."""
        ...

    @property
    def may_block(self) -> bool:
        """Whether rendering waits for another process."""
        ...

    def render(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The prompt that asks for the next assistant turn.

        Raises:
            InvalidRequestError: the template refuses the messages, fails on them, or needs too much for them.
            QueueFullError: it is busy with others.
        """
        ...


def open_template(source: str, *, bos_token: str = "", eos_token: str = "") -> Template:
    """The template in the process that it may run in.

    Raises:
        ModelLoadError: the source is too long or is no template.
    """
    is_known = hashlib.sha256(source.encode()).hexdigest() in _READ_BY_US
    return (ChatTemplate if is_known else BoundedTemplate)(source, bos_token=bos_token, eos_token=eos_token)


class BoundedTemplate:
    """Implements Template in a child process, which is started for the first conversation and whenever it had to end.

    Args:
        source: the template's text.
        bos_token: what it knows as such.
        eos_token: likewise.
        cpu_s: processor time for one conversation.
        wall_s: time for one conversation, and to wait for the ones before it.
    """

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", cpu_s: float = CPU_S, wall_s: float = WALL_S
    ) -> None:
        self.variables: frozenset[str] = parse_template(source)
        self.source = source
        self.may_block: bool = True
        self._setup = Setup(source, bos_token, eos_token, cpu_s)
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._end_child: weakref.finalize[..., Any] | None = None

    def render(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
        """The prompt that asks for the next assistant turn.

        Raises:
            InvalidRequestError: the template refuses the messages, fails on them, or needs too much for them.
            QueueFullError: it is busy with others.
        """
        if not self._lock.acquire(timeout=self._wall_s):
            raise QueueFullError("the chat template is busy with other conversations: try again later")
        try:
            outcome = self._ask(Job(list(messages), dict(variables or {})))
        finally:
            self._lock.release()
        if outcome is None:
            raise InvalidRequestError(
                f"the model's chat template needs more than {self._setup.cpu_s:g} s or too much memory for these "
                "messages: send fewer",
                param="messages",
            )
        if outcome.text is None:
            raise InvalidRequestError(outcome.refusal or "", param="messages")
        return outcome.text

    def close(self) -> None:
        """End the child; another conversation would start it again."""
        if self._end_child is not None:
            self._end_child()
        self._child = None

    def _ask(self, job: Job) -> Outcome | None:
        """The child's outcome, or None if it did not live to tell."""
        if self._child is not None and self._child.poll() is not None:
            self.close()  # something else ended it, which is not this conversation's fault
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = threading.Timer(self._wall_s, child.kill)
        deadline.start()
        try:
            write_message(child.stdin, job)
            body = read_body(child.stdout)
        except OSError:  # it is gone
            body = None
        finally:
            deadline.cancel()
        if body is None:
            self.close()
            return None
        return msgspec.msgpack.decode(body, type=Outcome)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "deepseek_engine.chat.template_worker"]
        child = subprocess.Popen(  # noqa: S603  our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert child.stdin is not None
        self._child = child
        self._end_child = weakref.finalize(self, _end, child)
        write_message(child.stdin, self._setup)
        return child


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was still to be written has no reader any more
                continue
