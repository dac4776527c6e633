"""Being told to stop, and stopping at a good moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether somebody wants the run to stop."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self) -> bool:
        """Asked by the trainer after each step."""
        return self.wanted

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGTERM and the first SIGINT as a wish to stop; a second SIGINT interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
