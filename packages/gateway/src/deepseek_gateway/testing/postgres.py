"""A PostgreSQL server of the tests' own, on a unix socket in a folder of its own."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from deepseek_gateway.storage.store import migrate_store

_QUICK = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "max_connections=200")
_USERS = ("postgres", "nobody")
"""Who runs the server when the tests run as root, which PostgreSQL refuses."""


class ServerNotInstalledError(Exception):
    """The program is not on this machine."""


def find_program(name: str) -> Path:
    """A program of PostgreSQL: on the path, or where Debian keeps it.

    Raises:
        ServerNotInstalledError: it is nowhere.
    """
    places = [
        *os.environ.get("PATH", "").split(os.pathsep),
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))),
    ]
    # Debian's own folder first: server and tools there are of one version.
    found = shutil.which(name, path=os.pathsep.join(reversed(places)))
    if found is None:
        raise ServerNotInstalledError(f"{name} is not installed: apt-get install postgresql")
    return Path(found)


@dataclass(slots=True)
class PostgresServer:
    """A running server: fresh databases, and a hand on its process for tests of failures."""

    folder: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    databases: int = 0

    def url(self, name: str) -> str:
        """How to reach a database."""
        return f"postgresql://tests@/{name}?host={self.folder}"

    def new_database(self, *, migrated: bool = True, encoding: str = "UTF8") -> str:
        """The URL of a fresh database; a migrated one is a copy of a template, which is quick."""
        if not self.databases:
            self._run("CREATE DATABASE template")
            migrate_store(self.folder, self.url("template"))
        self.databases += 1
        name = f"tests_{self.databases}"
        template = "template" if migrated else "template0"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING '{encoding}'")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Forget a database, whoever is connected."""
        name = url.removeprefix("postgresql://tests@/").partition("?")[0]
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        while True:
            try:
                self._run("SELECT 1")
            except psycopg.OperationalError:
                if self.process.poll() is not None:
                    raise
            else:
                return

    def stop(self) -> None:
        """End it in good order, whoever is connected: what was committed is there after the next start."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)  # SIGTERM would wait until all have disconnected
        self.process.wait()

    def kill(self) -> None:
        """End it at once, its sessions too, with nothing written: the next start recovers as after a power cut.

        Without fsync, as it runs here, the last commits may be lost.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)  # SIGKILL would leave sessions that run on for a moment
        self.process.wait()

    def _run(self, sql: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.encode())


@contextlib.contextmanager
def postgres_server() -> Generator[PostgresServer]:
    """A server for as long as the block runs.

    Raises:
        ServerNotInstalledError: PostgreSQL is not on this machine.
    """
    initdb, postgres = find_program("initdb"), find_program("postgres")
    user = next((u for u in map(_user, _USERS) if u is not None), None) if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg-") as name:  # a short path: unix sockets allow about 100 bytes
        folder = Path(name)
        become: list[str] = []
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
            become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
        folder.chmod(0o755)
        data = str(folder / "data")
        making = [*become, str(initdb), "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(making, check=True, capture_output=True)  # noqa: S603  the test's own command
        command = [*become, str(postgres), "-D", data, "-k", str(folder), "-h", "", *_QUICK]
        server = PostgresServer(folder, command)
        server.start()
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
