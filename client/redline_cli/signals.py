"""Handles Ctrl-C and SIGTERM: every command ends promptly and cleans up, whatever it is waiting for.

The first signal raises ``Stopped`` in the main thread, so that files are closed and temporary files removed; later
signals are ignored. If the exception does not end the process within ``GRACE_S`` (because of a long call into a
library, or an ``except`` that catches everything), the process is ended. Once a command sets its own signal handlers,
as ``serve`` does, this module does nothing.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from redline.files.atomic import discard_unfinished

GRACE_S = 2.0
BROKEN_PIPE_STATUS = 141  # what a shell reports for a command that SIGPIPE ended
_MESSAGES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_announced = threading.Lock()


class Stopped(BaseException):
    """The command must end.

    Not a subclass of Exception, so that no handler treats it as a failure. ``message`` is printed.
    """

    def __init__(self, status: int, message: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class PipeClosedError(Stopped):
    """The reader of the command's output is gone, as after ``| head -1``: the command ends without a message."""

    def __init__(self) -> None:
        super().__init__(BROKEN_PIPE_STATUS, None)


def _stopped(number: int) -> Stopped:
    return Stopped(128 + number, _MESSAGES[signal.Signals(number)])


class _Handler:
    """Raises at the first signal and ignores the others."""

    def __init__(self) -> None:
        self.is_stopping = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.is_stopping:
            self.is_stopping = True
            raise _stopped(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM raise ``Stopped``, unless they were ignored or handled before."""
    handled = [number for number, default in _DEFAULTS.items() if signal.getsignal(number) is default]
    if threading.current_thread() is not threading.main_thread() or not handled:
        yield
        return
    handler = _Handler()
    report, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in handled:
        signal.signal(number, handler)
    threading.Thread(target=_watch, args=(report, handler), daemon=True, name="redline-signals").start()
    try:
        yield
    finally:
        if not handler.is_stopping:  # a process that is ending keeps its handlers
            for number in handled:
                if signal.getsignal(number) is handler:
                    signal.signal(number, _DEFAULTS[number])
            signal.set_wakeup_fd(before)
            writing.close()


def _watch(report: socket.socket, handler: _Handler) -> None:
    """Wait for a signal, then for the process to end; end it if it does not."""
    with report:
        while data := report.recv(1):
            number = data[0]
            if number in _DEFAULTS and signal.getsignal(number) is handler:
                time.sleep(GRACE_S)
                exit_now(_stopped(number), has_time=False)


def exit_now(stopped: Stopped, *, has_time: bool = True) -> NoReturn:
    """End the process now, without waiting for threads or for blocked output.

    Args:
        has_time: whether to run the exit functions that libraries have registered.
    """
    with suppress(BaseException):
        discard_unfinished()
        _announce(stopped)
        if has_time:
            atexit._run_exitfuncs()
    os._exit(stopped.status)


def _announce(stopped: Stopped) -> None:
    """Print the message once, and only if standard error accepts it without blocking."""
    is_mute = stopped.message is None or sys.stderr is None or not _announced.acquire(blocking=False)
    if not is_mute and select.select([], [sys.stderr], [], 0.1)[1]:
        os.write(sys.stderr.fileno(), f"redline: {stopped.message}\n".encode())
