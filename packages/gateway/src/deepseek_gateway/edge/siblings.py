"""The metrics of all workers on one port: whichever is asked, asks the others, and tells them apart by a label."""

import asyncio
from pathlib import Path

TIMEOUT_S = 1.0
MAX_BYTES = 16 * 2**20
OWN = b"own=1"
"""The query of a sibling: answer for yourself only."""


async def merged_metrics(own: bytes, worker: int, sockets: dict[int, Path]) -> bytes:
    """Expositions of this worker and of the others that answer, family by family, each sample labelled `worker`."""
    others = {number: path for number, path in sockets.items() if number != worker}
    answers = await asyncio.gather(*(_fetch(path) for path in others.values()))
    texts = {worker: own, **{number: text for number, text in zip(others, answers, strict=True) if text is not None}}
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for number in sorted(texts):
        _gather(families, texts[number], b'worker="%d"' % number)
    return b"".join(b"".join((*head, *samples)) for head, samples in families.values())


def _gather(families: dict[bytes, tuple[list[bytes], list[bytes]]], text: bytes, label: bytes) -> None:
    head, samples = list[bytes](), list[bytes]()
    for line in text.splitlines(keepends=True):
        if line.startswith(b"# HELP "):
            name = line.split(b" ", 3)[2]
            is_new = name not in families
            head, samples = families.setdefault(name, ([], []))
            head = head if is_new else []
        if line.startswith(b"#"):
            head.append(line)
        elif line.strip():
            samples.append(_labelled(line, label))


def _labelled(line: bytes, label: bytes) -> bytes:
    at = line.find(b"{")
    if 0 <= at < line.find(b" "):
        return line[: at + 1] + label + b"," + line[at + 1 :]
    name, _, rest = line.partition(b" ")
    return name + b"{" + label + b"} " + rest


async def _fetch(path: Path) -> bytes | None:
    """A sibling's own exposition; None when it does not answer: it starts, or it is gone."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(b"GET /metrics?" + OWN + b" HTTP/1.0\r\n\r\n")
                answer = await reader.read(MAX_BYTES)
                while part := await reader.read(MAX_BYTES):
                    answer += part
            finally:
                writer.close()
    except OSError:  # TimeoutError is one
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    return body if b" 200 " in head[:16] else None
