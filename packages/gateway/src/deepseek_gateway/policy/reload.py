"""Hot reload: read the configuration again on SIGHUP and when its file changes, and put it in force if it is sound."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepseek_gateway.background import forever
from deepseek_gateway.config.effective import waiting_for_a_start
from deepseek_gateway.config.load import LoadedConfig
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.policy.snapshot import Snapshot, compile_snapshot, watched_files
from deepseek_gateway.settings import LIVE, ConfigSource, Settings

logger = logging.getLogger(__name__)

Result = Literal["applied", "unchanged", "failed"]

_Stamps = dict[Path, tuple[int, ...] | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """The last time that the configuration was read: at a Unix time, with what came of it."""

    at: float
    result: Result
    version: str
    faults: tuple[str, ...] = ()


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
        self.last: Reading | None = None
        self.sound: LoadedConfig[Settings] | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong with the configuration since it was last read, if anything is."""
        return "\n".join(self.last.faults) if self.last is not None and self.last.faults else None

    async def watch(self, current: Callable[[], Snapshot]) -> None:
        """Look at the files every `reload_poll_s`, and read a configuration that is broken again, until cancelled."""
        loop = asyncio.get_running_loop()
        self._stamps = await loop.run_in_executor(self._executor, self._stamp, current())
        await self.reload(current())  # the file may have changed since the start read it

        async def look() -> None:
            stamps = await loop.run_in_executor(self._executor, self._stamp, current())
            # What a broken configuration waits for may be a file that only it names: prices, a secret, a certificate.
            is_changed = stamps != self._stamps
            if is_changed or self.fault is not None:
                self._stamps = stamps
                await self.reload(current(), is_retry=not is_changed)

        await forever(lambda: current().settings.reload_poll_s, look, "reading the configuration")

    async def reload(self, current: Snapshot, *, is_retry: bool = False) -> bool:
        """Read now; False when the old configuration stays in force because the new one is broken.

        A retry that finds the same faults says nothing. What can only change at a start keeps its value, and the log
        says so.
        """
        async with self._lock:
            loop = asyncio.get_running_loop()
            try:
                loaded, snapshot, later = await loop.run_in_executor(self._executor, self._compile, current)
            except ConfigurationError as error:
                self._failed(current, tuple(str(error).splitlines()), is_retry=is_retry)
                return False
            if later:
                logger.warning("these settings change at the next start only: %s", ", ".join(later))
            is_same = snapshot.version == current.version and snapshot.upstreams == current.upstreams
            result: Result = "unchanged" if is_same else "applied"
            self.last, self.sound = Reading(time.time(), result, snapshot.version), loaded
            if not is_same:
                await self._apply(snapshot)
                logger.info("configuration %s is in force instead of %s", snapshot.version, current.version)
            self._reloaded(result)
            return True

    def _failed(self, current: Snapshot, faults: tuple[str, ...], *, is_retry: bool) -> None:
        if is_retry and self.last is not None and self.last.faults == faults:
            return
        self.last = Reading(time.time(), "failed", current.version, faults)
        self._reloaded("failed")
        for fault in faults:
            logger.error("the configuration is broken, %s stays in force: %s", current.version, fault)

    def _compile(self, running: Snapshot) -> tuple[LoadedConfig[Settings], Snapshot, list[str]]:
        """What was read, what it makes, and the settings that wait for a start."""
        current, loaded = running.settings, self._source.read()
        new = loaded.settings
        if new is None or loaded.faults:
            raise ConfigurationError("\n".join(loaded.faults))
        if not new.upstreams:
            raise ConfigurationError("upstreams is empty: name at least one engine, such as http://host:8080")
        later = waiting_for_a_start(LIVE, current, new)
        kept = {name: getattr(current, name) for name in later}
        snapshot = compile_snapshot(new.model_copy(update=kept), self._pepper)
        was, currency = running.prices.currency, snapshot.prices.currency
        if currency != was:  # balances and budgets are in it, and what runs is priced in it
            place = new.prices or "prices"
            raise ConfigurationError(f"{place}: the currency {currency} instead of {was} needs a start")
        return loaded, snapshot, later

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
