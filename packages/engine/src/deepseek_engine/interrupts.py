"""Ctrl-C between two steps of an engine, not in the middle of one, where its books would not be in order."""

import signal
import threading
from types import FrameType
from typing import Self


class InterruptGuard:
    """While entered, the first Ctrl-C only sets `is_interrupted`; the second one raises at once, as usual.

    Does nothing outside of the main thread, or where the program handles SIGINT itself.
    """

    def __init__(self) -> None:
        self.is_interrupted = False
        self._is_installed = False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._is_installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise if there was a Ctrl-C.

        Raises:
            KeyboardInterrupt: there was.
        """
        if self.is_interrupted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_interrupted:
            signal.default_int_handler(number, frame)
        self.is_interrupted = True
