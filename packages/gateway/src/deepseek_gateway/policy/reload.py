"""Hot reload: read the configuration again on SIGHUP and when its file changes, and put it in force if it is sound."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.policy.snapshot import Snapshot, compile_snapshot, watched_files
from deepseek_gateway.settings import LIVE, ConfigSource, Settings

logger = logging.getLogger(__name__)

_Stamps = dict[Path, tuple[int, ...] | None]


class ConfigReloader:
    """Keeps the snapshot up to date.

    Args:
        source: the same file, variables and flags as at the start.
        pepper: for the version.
        apply: puts a sound snapshot in force; it is awaited.
        executor: where files are read.
        reloaded: is told `applied`, `unchanged` or `failed` each time.
    """

    def __init__(
        self,
        source: ConfigSource,
        pepper: bytes,
        apply: Callable[[Snapshot], Awaitable[None]],
        executor: Executor,
        reloaded: Callable[[str], None],
    ) -> None:
        self._source = source
        self._pepper = pepper
        self._apply = apply
        self._executor = executor
        self._reloaded = reloaded
        self._lock = asyncio.Lock()
        self._stamps: _Stamps = {}
        self.fault: str | None = None

    async def watch(self, current: Callable[[], Snapshot]) -> None:
        """Look at the files every `reload_poll_s`, until cancelled."""
        loop = asyncio.get_running_loop()
        self._stamps = await loop.run_in_executor(self._executor, self._stamp, current())
        await self.reload(current())  # the file may have changed since the start read it
        while True:
            await asyncio.sleep(current().settings.reload_poll_s)
            stamps = await loop.run_in_executor(self._executor, self._stamp, current())
            if stamps != self._stamps:
                self._stamps = stamps
                await self.reload(current())

    async def reload(self, current: Snapshot) -> bool:
        """Read now; False when the old configuration stays in force because the new one is broken.

        What can only change at a start keeps its value, and the log says so.
        """
        async with self._lock:
            loop = asyncio.get_running_loop()
            try:
                snapshot = await loop.run_in_executor(self._executor, self._compile, current)
            except ConfigurationError as error:
                self.fault = str(error)
                snapshot = None
            if snapshot is None:
                self._reloaded("failed")
                for line in (self.fault or "").splitlines():
                    logger.error("the configuration is broken, %s stays in force: %s", current.version, line)
                return False
            self.fault = None
            is_same = snapshot.version == current.version and snapshot.upstreams == current.upstreams
            if not is_same:
                await self._apply(snapshot)
                logger.info("configuration %s is in force instead of %s", snapshot.version, current.version)
            self._reloaded("unchanged" if is_same else "applied")
            return True

    def _compile(self, running: Snapshot) -> Snapshot:
        current = running.settings
        new = self._source.load()
        if not new.upstreams:
            raise ConfigurationError("upstreams is empty: name at least one engine, such as http://host:8080")
        fixed = [name for name in Settings.model_fields if name not in LIVE]
        later = [name for name in fixed if getattr(new, name) != getattr(current, name)]
        if later:
            logger.warning("these settings change at the next start only: %s", ", ".join(later))
        kept = {name: getattr(current, name) for name in fixed}
        snapshot = compile_snapshot(new.model_copy(update=kept), self._pepper)
        was, currency = running.prices.currency, snapshot.prices.currency
        if currency != was:  # balances and budgets are in it, and what runs is priced in it
            place = new.prices or "prices"
            raise ConfigurationError(f"{place}: the currency {currency} instead of {was} needs a start")
        return snapshot

    def _stamp(self, snapshot: Snapshot) -> _Stamps:
        path = self._source.path
        paths = [*([] if path is None else [path]), *watched_files(snapshot.settings)]
        return {path: _stamp_of(path) for path in paths}


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode  # who may read it can be a fault
