"""acting_on_interrupts(): Ctrl-C ends a blocking read even where it comes just before it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Generator
from types import FrameType

_REPEATS, _PAUSE_SECONDS = 20, 0.05


@contextlib.contextmanager
def acting_on_interrupts() -> Generator[None]:
    """While the block runs, Ctrl-C raises KeyboardInterrupt soon, whatever the main thread does.

    CPython only notes a signal when it comes and raises between two bytecodes; a read that the main thread enters in
    between blocks on, for minutes if the server thinks. So a thread, which the signal's wakeup descriptor wakes, makes
    blocking calls look again with an empty signal, for a second. Where signals cannot be sent to a thread (Windows)
    and outside the main thread the block just runs.
    Source: signal.set_wakeup_fd; PEP 475, by which an interrupted call goes on unless a signal's handler raises.
    """
    if not hasattr(signal, "pthread_kill") or threading.current_thread() is not threading.main_thread():
        yield
        return
    main = threading.get_ident()
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)

    def repeat() -> None:
        while signals := os.read(woken, 1):
            if signals[0] == signal.SIGINT:
                for _ in range(_REPEATS):
                    time.sleep(_PAUSE_SECONDS)
                    signal.pthread_kill(main, signal.SIGURG)
        os.close(woken)

    def ignore(_number: int, _frame: FrameType | None) -> None:
        pass

    threading.Thread(target=repeat, name="deepseek-interrupts", daemon=True).start()
    urgent = signal.signal(signal.SIGURG, ignore)
    wakeup = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGURG, urgent)
        os.close(wakes)
