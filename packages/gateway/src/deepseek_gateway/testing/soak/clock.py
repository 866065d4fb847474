"""A process whose wall clock can be set, without setting the machine's: a small library that is loaded before libc's.

Only the wall clock moves; monotonic time is the kernel's, as it is when somebody sets a real clock.
"""

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_s;
static int (*real_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void load(void) {
    real_clock = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("SETTABLE_CLOCK");
    int fd = path ? open(path, O_RDONLY) : -1;
    if (fd < 0) return;
    void *at = mmap(0, sizeof *offset_s, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) offset_s = at;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_clock) load();
    int status = real_clock(clock, now);
    if (!status && offset_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset_s;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec at;
    (void)zone;
    int status = clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return status;
}

time_t time(time_t *kept) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (kept) *kept = at.tv_sec;
    return at.tv_sec;
}
"""


@dataclass(frozen=True, slots=True)
class SettableClock:
    """The wall clock of processes that are started with `env`."""

    library: Path
    offset: Path

    @classmethod
    def build(cls, folder: Path) -> "SettableClock | None":
        """Compile it; None where there is no C compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            return None
        source, clock = folder / "clock.c", cls(folder / "clock.so", folder / "clock.offset")
        source.write_text(_SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(clock.library), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603  our own text
        clock.set(0)
        return clock

    @property
    def env(self) -> dict[str, str]:
        """What a process is started with."""
        return {"LD_PRELOAD": str(self.library), "SETTABLE_CLOCK": str(self.offset)}

    def set(self, seconds: int) -> None:
        """Set the clock so far from the machine's, at once."""
        with self.offset.open("r+b" if self.offset.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))
