"""A real nginx in front of a gateway, with its default settings for proxies."""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

DEADLINE_S = 20.0

_CONFIG = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {url}; }}
    }}
}}
"""
"""What must be set to run as anybody, and one `proxy_pass`: buffering, HTTP version and timeouts are nginx's own."""


def nginx_program() -> str | None:
    """The installed nginx, or None; Debian keeps it where only root's PATH looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextlib.asynccontextmanager
async def nginx_before(url: str) -> AsyncGenerator[str]:
    """The URL of an nginx before `url`, for as long as the block runs.

    Raises:
        RuntimeError: nginx is not installed, or does not start.
    """
    program = nginx_program()
    if program is None:
        raise RuntimeError("nginx is not installed")
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        port = _free_port()
        config = Path(folder) / "nginx.conf"
        config.write_text(_CONFIG.format(folder=folder, port=port, url=url))
        log = Path(folder) / "error.log"
        command = (program, "-p", folder, "-e", str(log), "-c", str(config))
        process = await asyncio.create_subprocess_exec(*command)
        try:
            await _until_listening(process, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _until_listening(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)
    raise RuntimeError(f"nginx does not start: {await asyncio.to_thread(log.read_text)}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
