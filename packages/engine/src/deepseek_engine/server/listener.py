"""The socket that the server listens on, bound before the model loads: a taken port fails in milliseconds."""

import contextlib
import os
import socket
import stat
from pathlib import Path

from deepseek_engine.server.settings import ServerSettings


class ListenError(Exception):
    """The address cannot be listened on."""


def bind_socket(settings: ServerSettings) -> socket.socket:
    """A bound socket, not yet listening, so that nobody connects before there is someone to answer.

    Raises:
        ListenError: the address is taken, unknown or not allowed.
    """
    try:
        return _bind_tcp(settings.host, settings.port) if settings.uds is None else _bind_uds(Path(settings.uds))
    except OSError as error:
        where = settings.uds or f"{settings.host}:{settings.port}"
        raise ListenError(f"cannot listen on {where}: {error.strerror or error}") from error


def describe_socket(bound: socket.socket) -> str:
    """Its address as a URL: `http://127.0.0.1:8080` or `unix:/run/engine.sock`."""
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def remove_socket_file(settings: ServerSettings) -> None:
    """Take the unix socket's file away at the end."""
    if settings.uds is not None:
        with contextlib.suppress(FileNotFoundError):
            Path(settings.uds).unlink()


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_uds(path: Path) -> socket.socket:
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
        path.unlink()  # left by a server that was killed
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # for this user alone; share it through the folder's group if others need it
    try:
        bound.bind(str(path))
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
