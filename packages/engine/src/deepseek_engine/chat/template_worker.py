"""A process that renders one chat template, and that can be stopped: `python -m deepseek_engine.chat.template_worker`.

In: the template, then conversations. Out: one answer each. The kernel ends the process when a job takes more processor
time than it may, whatever the template does; memory is bounded likewise. The end of its input ends it.
"""

import signal
import sys
from typing import IO, Final

import msgspec

from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.errors import EngineError, InvalidRequestError

MAX_MEMORY_BYTES: Final = 1 << 30
"""Address space. The longest prompt that passes is 16 M characters, in a few copies."""


class Setup(msgspec.Struct, frozen=True):
    """The first message: what to render, and the processor time of one job."""

    source: str
    bos_token: str
    eos_token: str
    cpu_s: float


class Job(msgspec.Struct, frozen=True):
    """A conversation to render."""

    messages: list[dict[str, object]]
    variables: dict[str, object]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a job: a text, or why there is none."""

    text: str | None = None
    refusal: str | None = None


def write_message(stream: IO[bytes], message: Setup | Job | Outcome) -> None:
    """Send one message: its length, then itself."""
    body = msgspec.msgpack.encode(message)
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def read_body(stream: IO[bytes]) -> bytes | None:
    """The next message's bytes; None at the end, which may come anywhere."""
    head = stream.read(4)
    size = int.from_bytes(head, "big")
    body = stream.read(size) if len(head) == 4 else b""
    return body if len(head) == 4 and len(body) == size else None


def main() -> None:
    """Serve jobs until the input ends."""
    _limit_memory()
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    body = read_body(source)
    if body is None:
        return
    setup = msgspec.msgpack.decode(body, type=Setup)
    template: ChatTemplate | None = None
    while (body := read_body(source)) is not None:
        _bound_cpu(setup.cpu_s)
        try:
            # Compiling folds constants, so it too may take any time.
            template = template or ChatTemplate(setup.source, bos_token=setup.bos_token, eos_token=setup.eos_token)
            job = msgspec.msgpack.decode(body, type=Job)
            outcome = Outcome(text=template.render(job.messages, job.variables))
        except (EngineError, InvalidRequestError, MemoryError) as error:
            outcome = Outcome(refusal=str(error) or "it needs too much memory")
        _bound_cpu(0.0)
        write_message(answers, outcome)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def _bound_cpu(seconds: float) -> None:
    """From now on, or with 0 no longer: SIGPROF after this much processor time, which ends the process."""
    if hasattr(signal, "setitimer"):  # not on Windows, where the parent's deadline has to do
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
