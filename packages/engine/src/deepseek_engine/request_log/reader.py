"""Request logs as they are found on disk: written to the end, cut off by a crash, or in several parts."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from deepseek_engine.errors import EngineError
from deepseek_engine.request_log.records import FORMAT, EndRecord, Header, Record, RequestRecord


class RequestLogError(EngineError):
    """A request log that cannot be read."""


@dataclass(slots=True)
class RecordedRequest:
    """A request, and the ends of its answers that the log has, by their index."""

    record: RequestRecord
    ends: dict[int, EndRecord] = field(default_factory=dict[int, EndRecord])


@dataclass(slots=True)
class RecordedRun:
    """What a log says.

    Attributes:
        requests: by their numbers, in order of arrival.
        unreadable: lines in the middle that are none, as `FILE:LINE: reason`.
        is_cut: whether the last line is not whole, as a crash leaves it.
        num_orphans: ends whose requests are not in these files.
    """

    header: Header
    requests: dict[int, RecordedRequest] = field(default_factory=dict[int, RecordedRequest])
    unreadable: list[str] = field(default_factory=list[str])
    is_cut: bool = False
    num_orphans: int = 0


def read_request_log(paths: Iterable[Path]) -> RecordedRun:
    """Read the parts of one run, the oldest first.

    Raises:
        RequestLogError: a file cannot be read or is no request log, or they are of different runs.
    """
    run: RecordedRun | None = None
    for path in paths:
        lines = _lines(path)
        header = _header(path, lines)
        if run is None:
            run = RecordedRun(header)
        elif header.run != run.header.run:
            raise RequestLogError(f"{path} is of another run than the files before it: replay each run by itself")
        _read_part(path, lines, run)
    assert run is not None, "no files"
    return run


def _read_part(path: Path, lines: list[bytes], run: RecordedRun) -> None:
    decoder = msgspec.json.Decoder[Record](Record)
    for number, line in enumerate(lines[1:], 2):
        try:
            record = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            if number == len(lines):
                run.is_cut = True
            else:
                run.unreadable.append(f"{path}:{number}: {error}")
            continue
        if isinstance(record, RequestRecord):
            run.requests[record.number] = RecordedRequest(record)
        elif isinstance(record, EndRecord):
            request = run.requests.get(record.number)
            if request is None or not 0 <= record.index < request.record.submit.params.n:
                run.num_orphans += 1
            else:
                request.ends[record.index] = record


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise RequestLogError(f"{path}: {error.strerror}") from error


def _header(path: Path, lines: list[bytes]) -> Header:
    try:
        header = msgspec.json.decode(lines[0] if lines else b"", type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise RequestLogError(f"{path} does not begin with the header of a request log: {error}") from error
    if header.format != FORMAT:
        raise RequestLogError(f"{path} has format {header.format}; this version reads format {FORMAT}")
    return header
